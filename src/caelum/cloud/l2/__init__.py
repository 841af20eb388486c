"""L2 networks: broadcast domains, realised on the hosts of the clusters that they are attached to."""
