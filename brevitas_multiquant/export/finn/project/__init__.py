"""Files that an exported project carries with it: they import nothing of this package."""
