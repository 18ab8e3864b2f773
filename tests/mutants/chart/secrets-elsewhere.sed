# file: deploy/helm/weni-edge/templates/_helpers.tpl
# The edge looks for its secrets where they are not mounted.
s#/etc/weni-edge/secrets/%s#/run/secrets/%s#
