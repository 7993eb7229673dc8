"""The style sheet of the page that `data.report` writes."""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --fore: #1d2733; --soft: #5b6875; --line: #dfe4ea; --panel: #f6f8fa;
  --s0: #2563b8; --s1: #d9730d; --s2: #3a8a3e; --bad: #c0262d; --warn: #a15c00; --good: #257a3e;
  --bad-back: #fdecec; --warn-back: #fff5e0; --good-back: #eaf7ee; }
@media (prefers-color-scheme: dark) { :root { --back: #14181d; --fore: #e3e8ee; --soft: #98a4b1; --line: #2e3741;
  --panel: #1c2229; --s0: #6aa6f2; --s1: #f0a04b; --s2: #7cc47f; --bad: #ff8a8a; --warn: #f1bd67; --good: #80d198;
  --bad-back: #3a1d20; --warn-back: #35290f; --good-back: #15301f; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0 auto; max-width: 1240px; padding: 24px 20px 60px; background: var(--back); color: var(--fore);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 28px; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 40px 0 12px; padding-bottom: 6px; border-bottom: 2px solid var(--line); }
h3 { font-size: 16px; margin: 22px 0 8px; }
p { margin: 4px 0 10px; }
code { font: 12px/1.4 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.path, .note, .more, .legend, .where, figcaption i { color: var(--soft); }
.path { font-size: 13px; overflow-wrap: anywhere; }
.more { font-style: italic; }
.fine { color: var(--good); }
.warn-text { color: var(--warn); overflow-wrap: anywhere; }
.count { color: var(--soft); font-weight: 400; }
.badge { font-size: 12px; font-weight: 600; padding: 2px 8px; border-radius: 9px; margin-left: 8px; }
.badge.bad { color: var(--bad); background: var(--bad-back); }
.split { font-size: 11px; color: var(--soft); border: 1px solid var(--line); border-radius: 4px; padding: 0 4px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 10px; margin: 14px 0 18px; }
.tile { display: block; padding: 10px 12px; border-radius: 8px; background: var(--panel); color: inherit;
  text-decoration: none; border-left: 4px solid var(--line); font-size: 13px; line-height: 1.3;
  overflow-wrap: anywhere; }
.tile b { display: block; font-size: 24px; line-height: 1.2; }
.tile i { display: block; font-style: normal; color: var(--soft); }
.tile.bad { background: var(--bad-back); border-color: var(--bad); } .tile.bad b { color: var(--bad); }
.tile.warn { background: var(--warn-back); border-color: var(--warn); } .tile.warn b { color: var(--warn); }
.tile.good { background: var(--good-back); border-color: var(--good); } .tile.good b { color: var(--good); }
a.tile:hover { filter: brightness(0.97); }
.scroll { overflow-x: auto; }
.scroll.tall { max-height: 640px; overflow-y: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; } th:first-child, th.name { text-align: left; }
table.classes { min-width: 60%; }
th.name { white-space: normal; overflow-wrap: break-word; min-width: 120px; max-width: 320px; }
td + th.name { font-weight: 400; }
td.none { color: var(--bad); font-weight: 600; }
td.bar, th.bar { padding-right: 0; border-left: 1px solid var(--line); }
.meter { width: 110px; height: 9px; background: var(--panel); border-radius: 3px; overflow: hidden; }
.meter div { height: 100%; min-width: 1px; }
th.group { text-align: center; border-left: 1px solid var(--line); }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 16px; font-size: 14px; } nav a { color: var(--s0); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 14px; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin: 0 6px 0 2px; }
.s0 { background: var(--s0); fill: var(--s0); stroke: var(--s0); }
.s1 { background: var(--s1); fill: var(--s1); stroke: var(--s1); }
.s2 { background: var(--s2); fill: var(--s2); stroke: var(--s2); }
figure { margin: 0; min-width: 0; }
img { display: block; max-width: 100%; border-radius: 4px; background: var(--panel); }
figcaption { font-size: 13px; line-height: 1.35; margin-top: 5px; overflow-wrap: anywhere; }
figcaption b { font-weight: 600; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(172px, 1fr)); gap: 16px 14px; }
.gallery.large { grid-template-columns: repeat(auto-fill, minmax(min(230px, 45%), 1fr)); margin-bottom: 18px; }
.gallery img { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 18px; }
.pair { background: var(--panel); border-radius: 8px; padding: 8px; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; }
.two img { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; }
.faults { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); gap: 12px 18px; }
.fault { display: flex; gap: 12px; align-items: flex-start; font-size: 13px; overflow-wrap: anywhere; }
.fault > div:last-child { min-width: 0; flex: 1; }
.fault p { margin: 0 0 5px; }
.fault img, .fault .no-picture { flex: none; width: 120px; height: 90px; object-fit: contain; }
details .fault { margin: 6px 0; }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--soft); }
.no-picture { display: grid; place-items: center; min-height: 60px; border: 1px dashed var(--line); border-radius: 4px;
  color: var(--soft); font-size: 12px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(260px, 100%), 1fr)); gap: 22px 18px;
  margin-bottom: 24px; }
.chart figcaption { font-size: 14px; font-weight: 600; margin: 0 0 6px; }
svg { display: block; width: 100%; height: auto; }
svg .label { font-size: 11px; fill: var(--soft); }
svg .grid, svg .axis { stroke: var(--line); stroke-width: 1; }
svg .mark { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3; }
svg .area { fill-opacity: 0; stroke-width: 1.6; } svg .area.s0 { fill-opacity: 0.16; }
svg .bar { stroke: none; }
svg .ground { fill: var(--panel); stroke: var(--line); }
svg .heat { fill: var(--s0); }
"""
