"""`vit-export --tune`: which file is the fastest on this machine, among those that are accurate enough."""
