# file: deploy/helm/weni-edge/templates/_helpers.tpl
# The edge looks for the inspector's token where it is not mounted.
s#/etc/weni-edge/secrets/ADMIN_TOKEN#/run/secrets/ADMIN_TOKEN#
