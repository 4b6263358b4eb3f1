"""What a replica knows of ends and of the high watermark."""
