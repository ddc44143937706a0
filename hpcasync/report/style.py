"""Colours and the style sheet of the page, for both colour schemes.

The series colours follow Okabe and Ito, "Color Universal Design" (2008), which stay apart for colour-blind readers;
each is darkened for the light scheme and lightened for the dark one until it reads on its background. The first is
the baseline's: grey.
"""

LIGHT = ("#6b7280", "#0072b2", "#c84e00", "#00805d", "#a8458a", "#8f6a00", "#2a87b8", "#3b3f46")
DARK = ("#a4abb8", "#56b4e9", "#ff8f4d", "#2cc99b", "#e59cc9", "#e8bf3f", "#9ad6f5", "#e3e6ea")


def _variables(colours: tuple[str, ...]) -> str:
    return " ".join(f"--series-{index}: {colour};" for index, colour in enumerate(colours))


ALONE = f"""
svg {{ color: #1b1f24; background: #ffffff; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ svg {{ color: #e6e9ed; background: #14171b; {_variables(DARK)} }} }}
"""  # of a figure that is a file

SHEET = f"""
:root {{ color-scheme: light dark; --paper: #ffffff; --card: #f6f7f9; --ink: #1b1f24; --soft: #59616d; --line: #dfe3e8;
  --shade: #9aa3af; --done: #00805d; --failed: #b3261e; --running: #8f6a00; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #14171b; --card: #1c2026; --ink: #e6e9ed; --soft: #9ba4b0;
  --line: #30363e; --shade: #5b6572; --done: #2cc99b; --failed: #ff8a80; --running: #e8bf3f; {_variables(DARK)} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 2.5rem 1rem 4rem; }}
h1 {{ font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; letter-spacing: -.01em; }}
h2 {{ font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 1rem; overflow-wrap: anywhere; }}
h3 {{ font-size: 1rem; margin: 0 0 .25rem; }}
p {{ margin: 0 0 .75rem; }}
.soft, figcaption, .range {{ color: var(--soft); }}
.verdicts {{ list-style: none; margin: 0 0 1.75rem; padding: 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }}
.verdicts li {{ background: var(--card); border-radius: 8px; padding: .9rem 1.1rem;
  border-left: 4px solid var(--series); }}
.verdicts .figure {{ font-size: 1.7rem; line-height: 1.2; font-weight: 650; font-variant-numeric: tabular-nums; }}
.verdicts .figure small {{ font-size: .9rem; font-weight: 400; color: var(--soft); }}
.verdicts p {{ margin: .35rem 0 0; font-size: .94rem; }}
.scroll {{ overflow-x: auto; margin: 0 0 1.75rem;
  background: linear-gradient(to left, var(--paper) 50%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--shade), transparent) right / 1.5rem 100% no-repeat; }}
.scroll:focus-visible {{ outline: 2px solid var(--series-1); }}
table {{ border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .5rem .45rem; text-align: right; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid var(--line); }}
thead th {{ white-space: normal; vertical-align: bottom; font-weight: 500; color: var(--soft); line-height: 1.25; }}
th:first-child {{ text-align: left; padding-left: 0; position: sticky; left: 0; background: var(--paper); }}
tbody th {{ white-space: normal; font-weight: 600; min-width: min(10rem, 32vw); max-width: 16rem;
  overflow-wrap: anywhere; }}
.range {{ display: block; font-size: .82em; }}
.swatch {{ display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .5em;
  background: var(--series); }}
.plots {{ display: grid; gap: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }}
figure {{ margin: 0; min-width: 0; }}
figure svg {{ display: block; width: 100%; height: auto; }}
figure svg text {{ font-family: inherit !important; }}
figcaption {{ font-size: .85rem; margin-top: .4rem; }}
details {{ border-top: 1px solid var(--line); }}
details:last-of-type {{ border-bottom: 1px solid var(--line); }}
summary {{ cursor: pointer; padding: .6rem 0; overflow-wrap: anywhere; }}
summary b {{ font-weight: 600; }}
.status {{ font-size: .85rem; margin-left: .5em; }}
.done {{ color: var(--done); }} .failed {{ color: var(--failed); }} .running, .interrupted {{ color: var(--running); }}
dl {{ display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .3rem 1.25rem; margin: 0 0 1.25rem;
  font-size: .9rem; }}
dt {{ color: var(--soft); overflow-wrap: anywhere; }}
dd {{ margin: 0; min-width: 0; overflow-wrap: anywhere; white-space: pre-wrap; }}
code {{ font: .92em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
footer {{ margin-top: 3rem; font-size: .85rem; color: var(--soft); }}
@media (max-width: 560px) {{ main {{ padding-top: 1.5rem; }} h1 {{ font-size: 1.5rem; }}
  dl {{ grid-template-columns: 1fr; gap: 0; }} dd {{ margin-bottom: .5rem; }} }}
"""
