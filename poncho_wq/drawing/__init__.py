"""Pages and drawings as text: HTML and SVG that need nothing else, no script and no network, to be looked at."""
