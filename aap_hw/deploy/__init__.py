"""From a run to what runs on the device: compile, check against PyTorch, time, and bundle."""
