"""What was told, to look at: reports and figures read back from their files, one HTML page, its pictures for papers."""
