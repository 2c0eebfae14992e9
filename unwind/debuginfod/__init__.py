"""debuginfod: a build-id in, the file with it out, of servers or of what they once sent."""
