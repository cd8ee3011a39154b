"""The service beside what a team would use instead, measured in one run; docs/benchmarks.md says how.

run.py        the command; workloads.py what is sent, peers/ to whom, report.py and plots.py what comes out
"""
