"""One folder per operation, the same files in each, one file per backend."""

OPS = ("similarity", "neighbors", "facility_location", "cross_entropy", "linear_cross_entropy")
