"""One process a device: started, fed, watched and restarted from here."""
