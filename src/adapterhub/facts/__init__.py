"""What is known of adapters in general: configs of the library, names of tasks."""
