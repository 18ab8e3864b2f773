# file: deploy/RUNBOOK.md
# A command that there is not.
s/weni-edge journal show --config \$config    /weni-edge journal status --config $config    /
