# file: docker-compose.yml
# The inspector is published on every address, and speaks plain HTTP.
s/127\.0\.0\.1:9091:9090/9091:9090/
