# file: docker-compose.yml
# The journal's volume is not where the journal is: it is lost with the container.
s#- journal:/var/lib/weni-edge#- journal:/var/lib/edge#
