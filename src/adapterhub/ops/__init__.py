"""Running a hub: its set-up, its limits, its figures, its timed jobs, and the tools that look after its data."""
