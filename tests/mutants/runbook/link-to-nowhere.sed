# file: deploy/RUNBOOK.md
# A link leads to a section that there is not.
s/\(#resizing-the-journal\)/(#enlarging-the-journal)/
