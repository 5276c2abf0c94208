"""Reading: units of rows become Records and Batches, in threads of this process or in Ray Data tasks."""
