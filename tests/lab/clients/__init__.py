"""Programs that the lab runs as a caller, with childflow and without. They import the standard library and each other
only, since an ordinary user's Python has nothing else; the lab copies them to where such a user can read them."""
