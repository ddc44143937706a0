"""Reports: reads run folders, prints a table and writes a page."""
