"""Videos whose frames are read by their numbers, at their own rate and size, whatever they are."""
