# file: deploy/helm/weni-edge/templates/_helpers.tpl
# The chart does not compare the volume with the journal, and the journal is larger.
s/set \$config\.journal "directory" "\/var\/lib\/weni-edge"/set $config "journal" (dict "directory" "\/var\/lib\/weni-edge" "max_bytes" 99999999999)/
