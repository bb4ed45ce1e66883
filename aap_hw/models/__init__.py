"""The networks that aap-hw can build by name, and the seeded weights of untrained ones."""
