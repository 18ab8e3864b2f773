# file: docker-compose.yml
# The secret belongs to a user that the edge is not.
s/chown 65532:65532/chown 1000:1000/
