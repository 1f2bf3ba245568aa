"""The page's style sheet and its only script, as text: the file has to open from a mail, without a network."""

from __future__ import annotations

import base64
import hashlib

# Passed is drawn in ink, not in green, unless the host is ready: a blocked host must not look mostly green. Contrast of
# text is at least 4.5:1 on its ground in both schemes.
STYLE = """
:root{color-scheme:light dark;--ground:#fff;--card:#f5f7f9;--ink:#1b1f24;--soft:#57606a;--line:#cfd6dd;--link:#0b57a8;
--bad:#b3261e;--warn:#7a4a00;--open:#464a96;--good:#17662d;--passed:#57606a;--bar:#5b6670;--track:#dde3e9;
--code:#eceff3}
@media (prefers-color-scheme:dark){:root{--ground:#0e1116;--card:#171b22;--ink:#e6ebf0;--soft:#9ba6b2;--line:#343c46;
--link:#7ab7ff;--bad:#ff8f85;--warn:#f0b75a;--open:#b3b8ff;--good:#6fd58a;--passed:#9ba6b2;--bar:#8b97a3;
--track:#2a313a;
--code:#20262e}}
.ready{--passed:var(--good);--bar:var(--good)}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.45 system-ui,"Segoe UI",Roboto,"DejaVu Sans",Arial,
sans-serif;overflow-wrap:anywhere}
header,main,footer,.simulated{padding:0 20px}
main>*,header>*,footer>*{max-width:1180px;margin-left:auto;margin-right:auto}
a{color:var(--link)}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
.skip{position:absolute;left:-9999px}.skip:focus{left:8px;top:8px;background:var(--ground);padding:8px;z-index:2}
h1,h2,h3{line-height:1.25}
h2{font-size:1.3rem;margin:2.2rem 0 .3rem}h3{font-size:1.05rem;margin:0;display:inline}
code,pre,.code{font:.92em/1.45 ui-monospace,"DejaVu Sans Mono",Consolas,monospace;white-space:pre-wrap}
code,bdi,.v{unicode-bidi:isolate}.v{white-space:pre-wrap}
pre{background:var(--code);padding:10px 12px;margin:6px 0;border-radius:6px;max-height:32rem;overflow:auto;
unicode-bidi:plaintext}
.simulated{background:repeating-linear-gradient(-45deg,#ffd54a 0 18px,#f4c21a 18px 36px);color:#1b1400;
text-align:center;
font-weight:700;padding:8px 20px}
.hero{color:#fff;padding:20px;margin:0}.hero>*{max-width:1180px;margin:0 auto;display:block}
.hero h1{font-size:1.35rem;font-weight:500}
.state{display:block;font-size:2.7rem;font-weight:800;letter-spacing:.02em;line-height:1.1}
.host{font-size:1rem;margin-bottom:6px}.hero .means{margin-top:6px;font-size:.98rem}
.blocked .hero{background:#b3261e}.degraded .hero{background:#8a5600}.incomplete .hero{background:#464a96}
.ready .hero{background:#17662d}
.first{display:grid;grid-template-columns:minmax(0,3fr) minmax(0,2fr);gap:16px 26px;padding-top:18px;align-items:start}
.side{display:grid;gap:14px}
.strip{display:flex;flex-wrap:wrap;gap:2px 30px}.strip div{display:flex;gap:9px;flex-wrap:wrap}
.first+.box{margin-top:18px}
dl{display:grid;grid-template-columns:fit-content(12rem) minmax(0,1fr);gap:6px 16px;margin:0}
dt{color:var(--soft)}dd{margin:0}dd .code{font-weight:600}
.first dl{grid-template-columns:6.4rem minmax(0,1fr)}
.note{display:block;color:var(--soft);font-size:.92rem}
.box{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 16px}
.box h2{font-size:1rem;margin:0 0 8px}.first h2{font-size:1rem;margin:14px 0 4px}.first .box h2{margin:0 0 8px}
.command{display:block;background:var(--code);border:1px solid var(--line);border-radius:6px;padding:9px 11px;
user-select:all}
.action{margin:0 0 8px}.tag{display:inline-block;border:1.5px solid currentColor;border-radius:4px;padding:0 7px;
font-weight:700;font-size:.86rem;white-space:nowrap}
.safe{color:var(--good)}.caution{color:var(--warn)}.destructive{color:var(--bad)}
.blocked .safe,.incomplete .safe,.degraded .safe{color:var(--ink)}
button{font:inherit;font-size:.9rem;color:var(--ink);background:var(--ground);border:1px solid var(--soft);
border-radius:6px;padding:4px 14px;min-height:32px;margin-top:8px;cursor:pointer}
nav ul,.plain{list-style:none;padding:0;margin:0}nav{padding-top:16px}nav ul{display:flex;flex-wrap:wrap;gap:4px 18px}
.plain li{padding:3px 0}
section>h3,.in>h3{display:block;margin:16px 0 6px}
.lead,.cut{color:var(--soft);margin:.2rem 0 .7rem}
.bad{color:var(--bad)}.warn{color:var(--warn)}.open{color:var(--open)}.passed{color:var(--passed)}
.none{color:var(--soft)}
.word{font-weight:700;white-space:nowrap}.passed.word,.none.word{font-weight:500}
.ladder{list-style:none;padding:0;margin:0;border-top:1px solid var(--line)}
.ladder li{display:grid;grid-template-columns:9.2rem 8rem minmax(0,1fr) 16rem;gap:2px 14px;padding:7px 8px 7px 11px;
border-bottom:1px solid var(--line);border-left:5px solid transparent;align-items:start}
.edge-bad,.edge-warn,.edge-open{background:var(--card)}
.ladder .edge-bad,details.edge-bad,.finding.edge-bad{border-left-color:var(--bad)}
.ladder .edge-warn,details.edge-warn,.finding.edge-warn{border-left-color:var(--warn)}
.ladder .edge-open,details.edge-open,.finding.edge-open{border-left-color:var(--open)}
.ladder b{font-weight:600}.time{font-size:.9rem;color:var(--soft)}
svg{display:block;width:100%;overflow:hidden}svg text{fill:var(--ink);font-size:13px}
svg .axis{fill:var(--soft);font-size:12px}
.track{fill:var(--track)}.fill,.step{fill:var(--bar)}.step{stroke:var(--ground);stroke-width:1}
.inner{fill:var(--ink);opacity:.55}.late{fill:url(#hatch);stroke:var(--bad);stroke-width:1.5}
.hatch{stroke:var(--bad);stroke-width:4}.fill.bad{fill:var(--bad)}.fill.warn{fill:var(--warn)}
.grid{stroke:var(--line);stroke-width:1}.budget{stroke:var(--ink);stroke-width:2;stroke-dasharray:3 2}
.limit{stroke:var(--bad);stroke-width:2.5}
.mark{font-size:12px}
table{border-collapse:collapse;width:100%;font-size:.92rem;margin:6px 0 10px}
caption{text-align:left;font-weight:600;padding:4px 0}
th,td{text-align:left;vertical-align:top;padding:5px 10px 5px 0;border-bottom:1px solid var(--line)}
th{font-weight:600;overflow-wrap:break-word}
@media print,(min-width:821px){.fixed{table-layout:fixed}.checks th:nth-child(1){width:6.4rem}
.checks th:nth-child(2){width:8.6rem}
.checks th:nth-child(3){width:10rem}.checks th:nth-child(5){width:12%}.checks th:nth-child(6){width:22%}
.views td:first-child{width:9.5rem}.fatbins th:first-child{width:11rem}.fatbins th:nth-child(5){width:4rem}}
thead th{color:var(--soft)}td.row,.nowrap{white-space:nowrap}
details{border:1px solid var(--line);border-radius:8px;margin:8px 0;background:var(--ground)}
details>summary{cursor:pointer;padding:9px 12px}details>.in{padding:0 14px 8px}
details details>summary{padding:6px 10px}
details.edge-bad,details.edge-warn,details.edge-open{border-left-width:5px;background:var(--ground)}
.finding{border-left:4px solid var(--line);padding:2px 0 2px 14px;margin:12px 0}.finding p{margin:5px 0}
.finding.edge-bad,.finding.edge-warn,.finding.edge-open{background:none}
.gpu{margin:14px 0}
h4{font-size:1rem;margin:12px 0 4px}
.tree ul{list-style:none;margin:0;padding:0 0 0 18px;border-left:1px solid var(--line)}.tree>ul{padding:0;border:0}
.tree li{padding:3px 0}.aside{color:var(--soft);font-size:.92rem}
footer{border-top:1px solid var(--line);margin-top:2.5rem;padding-top:14px;padding-bottom:20px;color:var(--soft)}
@media screen and (max-width:820px){
header,main,footer,.simulated,.hero{padding-left:14px;padding-right:14px}
.state{font-size:2.1rem}.hero h1{font-size:1.12rem}.hero{padding-top:14px;padding-bottom:14px}
.first{grid-template-columns:minmax(0,1fr)}
.side{display:contents}.lead-facts{order:1}.next{order:2}.more-facts{order:3}
.first dl{grid-template-columns:minmax(0,1fr);gap:0}.first dd{margin-bottom:8px}
.ladder li{grid-template-columns:minmax(0,1fr) auto;gap:2px 10px}.ladder .saw,.ladder .time{grid-column:1/-1}
table,caption,tbody,tr,td,th{display:block;width:auto}thead{position:absolute;left:-9999px}
tr{border-bottom:1px solid var(--line);padding:7px 0}td,th{border:0;padding:1px 0}
td[data-label]::before{content:attr(data-label) ": ";color:var(--soft)}td.empty{display:none}
}
@media print{
:root{color-scheme:light;--ground:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#999;--link:#000;--bad:#9c1c15;
--warn:#6b4100;--open:#36397a;--good:#14592a;--passed:#444;--bar:#555;--track:#ddd;--code:#fff}
html{font-size:11px}body{font-size:9pt}td,th{overflow-wrap:anywhere}svg text{font-size:10px}
.ladder li{grid-template-columns:11rem 9rem minmax(0,1fr) 14rem}
nav,.skip,button{display:none}pre{max-height:none;overflow:visible;border:1px solid #999}
.hero{color:#000!important;background:#fff!important;border:4px solid #000}
.simulated{background:#fff!important;border:3px dashed #000}
.ladder li,tr,.finding,.lead,svg{break-inside:avoid}h2,h3,h4,.lead,summary,thead{break-after:avoid}
svg,.fill,.step{print-color-adjust:exact}
}
"""

# Buttons exist only where they work: a browser that shows a mail has no clipboard for scripts, and needs none.
SCRIPT = """
if(navigator.clipboard)for(const place of document.querySelectorAll('.command')){
const button=document.createElement('button');button.type='button';button.textContent='Copy command';
button.addEventListener('click',()=>navigator.clipboard.writeText(place.textContent).then(
()=>{button.textContent='Copied';},()=>{button.textContent='Select it and copy';}));
place.after(button);}
"""


def policy() -> str:
    """Return the Content-Security-Policy: nothing is loaded, sent or run but the script above."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    own = f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"
