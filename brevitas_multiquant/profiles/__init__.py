"""What a network quantizes beside the paper's branches: one folder for each deployment."""
