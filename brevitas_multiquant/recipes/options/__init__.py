"""The options of the recipes: parsers, types, configuration files."""
