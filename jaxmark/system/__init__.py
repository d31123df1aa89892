"""What needs an operating system: errors, files, locks, signals, processes, devices."""
