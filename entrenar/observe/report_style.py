"""The style of a report: light and dark as the reader's system has it, and printed in light."""

STYLE = """
:root{color-scheme:light dark;--page:#fff;--card:#f6f7f9;--text:#1c2128;--faint:#5d6673;--rule:#d5dae1;
--link:#0b5cad;--train:#9db8d9;--mean:#1f5fae;--held:#c2410c;--one:#1f5fae;--reference:#8a3ffc;--low:#8a6d00;
--medium:#c2410c;--high:#c41e3a;--phase0:#8d95a0;--phase1:#3b78c3;--phase2:#e08e2b;--phase3:#9d5bb5;
--phase4:#b3a31a;--phase5:#2c9b72;--phase6:#d1495b;--phase7:#bcc3cc}
@media screen and (prefers-color-scheme:dark){:root{--page:#14181d;--card:#1d232a;--text:#e4e8ed;--faint:#9aa5b1;
--rule:#39424d;--link:#77b3f2;--train:#3f5d80;--mean:#77b3f2;--held:#ff9d5c;--one:#77b3f2;--reference:#b794f6;
--low:#e0c04a;--medium:#ff9d5c;--high:#ff6b81;--phase0:#8d95a0;--phase1:#4f8fdd;--phase2:#e79a3f;--phase3:#b57bcb;
--phase4:#c9bb3d;--phase5:#3db387;--phase6:#e4677a;--phase7:#5a6572}}*{box-sizing:border-box}body{margin:0 auto;
padding:24px 20px 48px;max-width:1060px;background:var(--page);color:var(--text);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}h1{font-size:26px;margin:0 0 2px;
overflow-wrap:anywhere}h2{font-size:19px;margin:36px 0 8px}h3{font-size:15px;margin:18px 0 4px}p{margin:6px 0}
.faint,figcaption{color:var(--faint)}a{color:var(--link)}.tiles{display:grid;
grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:10px;margin:18px 0}.tile{background:var(--card);
border:1px solid var(--rule);border-radius:8px;padding:10px 14px}.tile b{display:block;font-size:20px;
font-weight:600;overflow-wrap:anywhere}.tile span{color:var(--faint);font-size:13px}figure{margin:8px 0 22px}
figcaption{font-size:13px;display:flex;flex-wrap:wrap;gap:2px 16px;align-items:baseline}figcaption b{
color:var(--text);font-size:15px}.key{white-space:nowrap}.key i{display:inline-block;width:14px;height:10px;
border-radius:2px;margin-right:5px}.wide{overflow-x:auto}svg{display:block;width:100%;min-width:480px;height:auto}
svg text{fill:var(--faint);font-size:12px;font-family:inherit}svg .row{fill:var(--text);font-size:13px}.grid{
stroke:var(--rule);stroke-width:1;opacity:.6}.axis,.tick{stroke:var(--faint);fill:none}.line{fill:none;
stroke-width:2;stroke-linejoin:round}.dot{stroke:var(--page);stroke-width:1.5}.train{stroke:var(--train);
stroke-width:1.3}.mean{stroke:var(--mean)}.held{stroke:var(--held)}.one{stroke:var(--one)}.slowest{
stroke:var(--text);stroke-width:1;opacity:.55}.reference{stroke:var(--reference);stroke-dasharray:6 4;
stroke-width:1.5;fill:none}i.reference{background:var(--reference)}.dot.train{fill:var(--train)}.dot.mean{
fill:var(--mean)}.dot.held{fill:var(--held)}.dot.one{fill:var(--one)}i.train{background:var(--train)}i.mean{
background:var(--mean)}i.held{background:var(--held)}i.one{background:var(--one)}i.slowest{background:var(--text);
opacity:.55}.phase0{fill:var(--phase0)}.phase1{fill:var(--phase1)}.phase2{fill:var(--phase2)}.phase3{
fill:var(--phase3)}.phase4{fill:var(--phase4)}.phase5{fill:var(--phase5)}.phase6{fill:var(--phase6)}.phase7{
fill:var(--phase7)}.whole{fill:var(--mean)}i.phase0{background:var(--phase0)}i.phase1{background:var(--phase1)}
i.phase2{background:var(--phase2)}i.phase3{background:var(--phase3)}i.phase4{background:var(--phase4)}i.phase5{
background:var(--phase5)}i.phase6{background:var(--phase6)}i.phase7{background:var(--phase7)}.mark path{
stroke-width:1.3;stroke-dasharray:3 3}.mark.low path{stroke:var(--low)}.mark.medium path{stroke:var(--medium)}
.mark.high path{stroke:var(--high)}.mark.low text{fill:var(--low)}.mark.medium text{fill:var(--medium)}
.mark.high text{fill:var(--high)}.badge{font-weight:600}.badge.low{color:var(--low)}.badge.medium{
color:var(--medium)}.badge.high{color:var(--high)}table{border-collapse:collapse;width:100%;font-size:14px}th,td{
padding:4px 10px 4px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}th{color:var(--faint);
font-weight:500}.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}td.long{
overflow-wrap:break-word}td.long:last-child{overflow-wrap:anywhere;min-width:180px}th{white-space:nowrap}.share{
display:block;background:var(--rule);height:8px;width:110px;border-radius:4px;overflow:hidden}.share i{
display:block;height:8px;background:var(--mean)}.sections{columns:300px;column-gap:32px}.sections>div{
break-inside:avoid;padding-bottom:20px}.sections h3{margin-top:0}.sections .wide{overflow:visible}
.sections td.long:last-child{min-width:0}.sections td:first-child{white-space:nowrap;color:var(--faint)}
.sections table{font-size:13px}pre{background:var(--card);border:1px solid var(--rule);border-radius:8px;
padding:10px 14px;margin:4px 0 10px;white-space:pre-wrap;overflow-wrap:anywhere;
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
@media print{body{max-width:none;padding:0;font-size:12px}figure,tr,pre,.tile{break-inside:avoid}h2,h3{
break-after:avoid}.wide{overflow:visible}svg{min-width:0}*{print-color-adjust:exact;
-webkit-print-color-adjust:exact}}
"""
