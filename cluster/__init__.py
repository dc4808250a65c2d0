"""Training and serving on a Ray cluster: submission of jobs, image and manifests."""
