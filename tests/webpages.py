"""Built pages, read as files and opened in a headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import patience

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
WIDTHS = (1280, 400)  # a screen's, a phone's
THEMES = ("light", "dark")
_LOADS = {("script", "src"), ("img", "src"), ("link", "href"), ("source", "srcset")}


class Page(HTMLParser):
    """Elements, links and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.ids: set[str] = set()
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.ids |= {value for key, value in attrs if key in ("id", "name") and value}

    def handle_data(self, data: str) -> None:
        self.text += data


def pages_in(folder: Path) -> list[Path]:
    """The pages of a site, without the templates of its theme."""
    return sorted(p for p in folder.rglob("*.html") if "_static" not in p.relative_to(folder).parts)


def crawl(folder: Path) -> tuple[int, list[str]]:
    """Count the links and files to which the pages of a folder refer, and list broken ones.

    What is loaded from elsewhere is broken too: pages are to be read without a network.
    """
    pages = {path.resolve(): Page(path) for path in pages_in(folder)}
    checked, broken = 0, []
    for page in pages.values():
        for tag, attributes in page.elements:
            for key in {"src", "href", "srcset"} & set(attributes):
                url = urlsplit(attributes[key] or "")
                checked += 1
                if url.scheme or url.netloc:
                    if (tag, key) in _LOADS and url.scheme != "data":
                        broken.append(f"{page.path.name} loads {attributes[key]}")
                    continue
                target = (page.path.parent / unquote(url.path) if url.path else page.path).resolve()
                known = pages.get(target)
                missing = known and url.fragment and unquote(url.fragment) not in known.ids
                if not target.exists() or missing:
                    broken.append(f"{page.path.name}: {attributes[key]}")
    return checked, broken


# Opens each page in a frame, once, and looks at it at every width in every theme.
_PROBE = """<!doctype html><meta charset="utf-8"><body><script>
const pages = %(pages)s, widths = %(widths)s, themes = %(themes)s, said = [];

function luminance([r, g, b]) {
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const [R, G, B] = [r, g, b].map(v => linear(v / 255));
  return 0.2126 * R + 0.7152 * G + 0.0722 * B;
}
function rgba(text) {
  const found = text.match(/[\\d.]+/g).map(Number);
  return found.length < 4 ? [...found, 1] : found;
}
// What is seen behind an element: colors of its ancestors, the nearest on top.
function behind(node) {
  const layers = [];
  for (; node; node = node.parentElement) {
    const color = rgba(getComputedStyle(node).backgroundColor);
    layers.push(color);
    if (color[3] === 1) break;
  }
  return layers.reverse().reduce((seen, [r, g, b, a]) =>
    [r, g, b].map((v, i) => a * v + (1 - a) * seen[i]), [255, 255, 255]);
}
// Words that WCAG 2.1 AA would have darker or lighter: 4.5 to 1, or 3 to 1 where they are large.
function faint(page) {
  const found = {}, walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), node = walker.currentNode.parentElement;
    if (!text || !node.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (node.closest("svg, script, style, .headerlink, [disabled]")) continue;
    const style = getComputedStyle(node), back = behind(node), [r, g, b, a] = rgba(style.color);
    const ink = [r, g, b].map((v, i) => a * v + (1 - a) * back[i]);
    const [dark, bright] = [luminance(ink), luminance(back)].sort((x, y) => x - y);
    const size = parseFloat(style.fontSize), large = size >= (style.fontWeight >= 700 ? 18.66 : 24);
    const ratio = (bright + 0.05) / (dark + 0.05);
    if (ratio < (large ? 3 : 4.5)) found[text.slice(0, 40)] = ratio.toFixed(2);
  }
  return found;
}
// Whether the title in the header covers a link of its menu.
function covered(page) {
  const title = page.querySelector(".navbar-brand .title");
  if (!title) return [];
  const a = title.getBoundingClientRect();
  return [...page.querySelectorAll(".bd-header .navbar-nav a, .bd-header button")].filter(link => {
    const b = link.getBoundingClientRect();
    return b.width && a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  }).map(link => link.textContent.trim());
}
// Where a slider's class means stand at both of its ends, and their drawn paths' ends.
function slide(page) {
  const slider = page.querySelector(".wgeo-scrubber input");
  if (!slider) return null;
  const means = [...page.querySelectorAll("circle.mean")];
  const drawn = [...page.querySelectorAll(".wgeo-scrubber polyline")].map(line => {
    const points = line.getAttribute("points").split(" ");
    return [points[0], points[points.length - 1]];
  });
  const root = slider.closest(".wgeo-scrubber"), opens = slider.value;
  const tell = () => root.querySelector(".metrics").textContent;
  const opening = tell();
  root.querySelector("svg").dispatchEvent(
    new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true, cancelable: true}));
  const about = {
    opens, opening, moved: slider.value, then: tell(),
    axes: [...root.querySelectorAll("text.axis")].map(text => text.textContent),
    caption: root.querySelector(".caption").textContent,
  };
  const ends = [slider.min, slider.max].map(value => {
    slider.value = value;
    slider.dispatchEvent(new Event("input"));
    const said = page.querySelector(".wgeo-scrubber output").textContent;
    return [said, means.map(c => c.getAttribute("cx") + "," + c.getAttribute("cy"))];
  });
  return [drawn, ends, about];
}
// What a page asked another host for, whether it was answered or not.
function asked(window) {
  return window.performance.getEntriesByType("resource").map(e => e.name)
    .filter(name => !/^(file|data|blob|about):/.test(name));
}
console.error("a complaint is heard");
(async () => {
  await new Promise(done => Object.assign(new Image(), {onerror: done, src: "http://a.example/"}));
  for (const page of pages) {
    const frame = document.createElement("iframe");
    frame.width = widths[0]; frame.height = 900; frame.src = page;
    document.body.append(frame);
    await new Promise(done => frame.onload = done);
    const inside = frame.contentDocument, root = inside.documentElement;
    const wide = {}, pale = {}, under = {};
    for (const width of widths) {
      frame.width = width;
      wide[width] = Math.max(0, root.scrollWidth - width);
      under[width] = covered(inside);
    }
    for (const theme of themes) {
      root.dataset.theme = theme;
      const still = inside.createElement("style");  // no color is seen on its way to another
      still.textContent = "* { transition: none !important; animation: none !important; }";
      inside.head.append(still);
      pale[theme] = faint(inside);
    }
    const pictures = [...inside.images];
    const missing = pictures.filter(i => i.loading !== "lazy" && !i.naturalWidth).length;
    const mute = pictures.filter(i => !i.hasAttribute("alt")).length;
    const abroad = asked(frame.contentWindow);
    said.push({page, wide, under, pale, missing, mute, abroad, slider: slide(inside)});
    frame.remove();
  }
  document.body.innerHTML = "<pre></pre>";
  document.querySelector("pre").textContent = JSON.stringify([asked(window), said]);
})();
</script>"""


def visit(pages: Iterable[Path], aside: Path, seconds: float = 600) -> list[dict[str, Any]]:
    """What a browser finds on each page; an error in a console is an assertion that fails.

    ``wide``: pixels by which it is too wide at each width; ``under``: links of the menu that the
    title covers; ``pale``: words of too little contrast
    in each theme; ``missing`` and ``mute``: pictures that did not load, or say nothing to those who
    cannot see them; ``abroad``: what it asked another host for; ``slider``: where the class means
    stand at its ends. The probe itself complains once and asks abroad once, so that silence is not
    deafness.
    """
    urls = [path.resolve().as_uri() for path in pages]
    assert urls, "there is no page to visit"
    probe = aside / "probe.html"
    probe.write_text(
        _PROBE % {"pages": json.dumps(urls), "widths": list(WIDTHS), "themes": json.dumps(THEMES)}
    )
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        *("--disable-web-security", "--allow-file-access-from-files", "--dump-dom"),
        *(f"--virtual-time-budget={5000 * len(urls)}", "--host-resolver-rules=MAP * ~NOTFOUND"),
        f"--user-data-dir={aside / 'profile'}",
    ]
    done = patience.run(
        [BROWSER, *options, probe.as_uri()], capture_output=True, text=True, work=seconds
    )
    told = re.search(r"<pre>(.*?)</pre>", done.stdout, flags=re.S)
    assert told, done.stderr[-2000:]
    complaints = re.findall(r'CONSOLE.*?\] "(?!\[PST\])(.*)', done.stderr)
    assert len(complaints) == 1, complaints
    assert "a complaint is heard" in complaints[0]
    own, found = json.loads(unescape(told[1]))
    assert own == ["http://a.example/"]
    return found


def assert_readable(found: Sequence[dict[str, Any]]) -> None:
    """Every page fits screen and phone, loads its pictures, and can be read in both themes."""
    for page in found:
        name = page["page"].rpartition("/")[2]
        assert not any(page["wide"].values()), f"{name} is too wide: {page['wide']}"
        assert not any(page["under"].values()), f"{name}: the title covers {page['under']}"
        assert not page["abroad"], f"{name} asks for {page['abroad']}"
        assert page["missing"] == 0, f"{name}: {page['missing']} pictures did not load"
        assert page["mute"] == 0, f"{name}: {page['mute']} pictures say nothing"
        assert not any(page["pale"].values()), f"{name}: {page['pale']}"
