# file: docker-compose.yml
# The inspector's token is made where the edge does not look.
s#token=/run/weni-edge/secrets/admin#token=/run/weni-edge/secrets/token#
