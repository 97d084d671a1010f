"""The documents that people read before and after a build.

assemble.py     the stages' results -> the dict of report.json (schema `edgekit.report/1`)
summary.py      that dict -> one row per model, the verdict in words, advice on a failed gate
allocation.py   the type of each tensor of a quantized file; as a picture: allocation_plot.py
plots.py        the other plots, as inline SVG, of the elements in svg.py
html.py         report.html: one file, no network, no scripts
table.py        the table at the end of `edgekit build`
readme.py       the bundle's README.md with loading examples
plan_table.py   the table of `edgekit plan`
"""
