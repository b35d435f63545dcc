"""Hours of mixed traffic with faults against a real server: what is lost, what is wrong, what grows."""
