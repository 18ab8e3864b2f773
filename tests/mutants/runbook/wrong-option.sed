# file: deploy/RUNBOOK.md
# A command is given an option that it does not have.
s/fork --config \$config --from oldest /fork --config $config --since oldest /
