"""Where bytes are kept: content-addressed, on disk or in an S3 bucket, and the one door through which they come in."""
