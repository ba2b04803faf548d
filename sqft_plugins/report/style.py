"""The look of the page: one sheet for light, dark, narrow and print. Colours after Okabe and Ito, which colour-blind
readers tell apart."""

CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #57606a; --rule: #d0d7de; --band: #f6f8fa;
  --c1: #0072b2; --c2: #c2500a; --c3: #00805c; --heat: #0072b2; --dot: #8c959f; --rest: #c9d1d9; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #15191e; --ink: #e6e8eb; --soft: #9da7b1; --rule: #363d45; --band: #1d2228;
    --c1: #58aee0; --c2: #f0925c; --c3: #45bd93; --heat: #2f83bd; --dot: #76808a; --rest: #4a535d; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 32px 72px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 10px; overflow-wrap: anywhere; }
h2 { font-size: 20px; line-height: 1.3; margin: 52px 0 6px; padding-top: 14px; border-top: 1px solid var(--rule); }
h3 { font-size: 16px; margin: 26px 0 4px; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 78ch; }
.lead { font-size: 18px; line-height: 1.5; overflow-wrap: anywhere; }
.note, figcaption, nav { color: var(--soft); font-size: 14px; overflow-wrap: anywhere; }
nav { margin: 14px 0 0; }
nav a { display: inline-block; margin-right: 18px; padding: 4px 0; }
a { color: var(--c1); }
.scroll { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 18px 6px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
th:last-child, td:last-child { padding-right: 0; }
tbody th { color: var(--ink); vertical-align: top; max-width: 16em; overflow-wrap: break-word; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.w { min-width: 11em; max-width: 34em; color: var(--soft); overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 22px; font-size: 14px; margin: 10px 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  background: var(--band); padding: 14px 16px; margin: 12px 0; overflow-x: auto; border-radius: 4px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 8px 28px; }
figure { margin: 12px 0; min-width: 0; overflow-x: auto; }
svg { display: block; max-width: 100%; height: auto; min-width: min(100%, 430px); }
figure.wide svg { max-width: none; min-width: 0; }
svg text { fill: var(--ink); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .tick { fill: var(--soft); }
svg .name { fill: var(--soft); }
svg .value { font-weight: 600; }
svg .mark { font-size: 13px; }
svg .cell { font-size: 11px; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
svg path { fill: none; stroke-linejoin: round; }
svg .thin { stroke-width: 1; opacity: 0.45; }
svg .medium { stroke-width: 2; }
svg .bold { stroke-width: 2.5; }
svg path.c1, svg line.c1 { stroke: var(--c1); }
svg path.medium.c2 { stroke: var(--c2); }
svg .whisker { stroke: var(--dot); stroke-width: 1.5; opacity: 0.6; }
svg .whisker.c1 { stroke: var(--c1); stroke-width: 2; opacity: 1; }
svg .dot { stroke: var(--paper); stroke-width: 1.5; }
svg .dot.muted { fill: var(--dot); }
svg .dot.c1, svg .bar.c1 { fill: var(--c1); }
svg .dot.c2, svg .bar.c2 { fill: var(--c2); }
svg .dot.c3 { fill: var(--c3); }
svg .bar.soft { fill: var(--rest); }
svg .heat { fill: var(--heat); }
@media (max-width: 560px) {
  main { padding: 24px 16px 48px; }
  h1 { font-size: 25px; }
  th, td { padding-right: 16px; }
}
@media print {
  @page { margin: 14mm; }
  main { max-width: none; padding: 0; }
  body { font-size: 10pt; }
  .note, figcaption, dl { font-size: 9pt; }
  .lead { font-size: 12pt; }
  nav { display: none; }
  h2 { break-after: avoid; margin-top: 28px; }
  h3 { break-after: avoid; }
  figure, tr, dl { break-inside: avoid; }
  .scroll, figure { overflow: visible; }
  .pair { grid-template-columns: 1fr 1fr; gap: 8px 16px; }
  table { font-size: 9pt; }
  th, td { padding: 4px 10px 4px 0; }
  td.w { min-width: 12em; }
  svg, figure.wide svg { min-width: 0; max-width: 100%; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  a { color: inherit; text-decoration: none; }
}
"""
