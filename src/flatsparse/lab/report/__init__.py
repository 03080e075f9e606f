"""All tables that were reproduced: as text, and as one page to open in a browser."""
