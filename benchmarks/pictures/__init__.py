"""Draws the documents' pictures from committed runs. A module has PICTURE, the path; series, what it shows; draw."""
