"""A folder a job, its options and the command's part in it; small jobs are one file."""
