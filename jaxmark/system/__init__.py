"""The operating system's side: errors, files, locks, signals, processes, devices."""
