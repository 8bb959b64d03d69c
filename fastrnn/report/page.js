"use strict";
// Shows the data of the page as curves, tables and captions. Text is never parsed as HTML.
(() => {
  const report = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  // Cards at first; the button adds twice as many.
  const CARDS = window.matchMedia("(max-width: 520px)").matches ? 12 : 24;

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "class") made.className = value;
      else if (value !== null && value !== undefined) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  function svgElement(tag, attributes, text) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const count = (value) => value.toLocaleString("en");
  const percent = (p) => (p >= 0.995 ? "100%" : p >= 0.095 ? `${Math.round(100 * p)}%`
    : `${(100 * p).toFixed(1)}%`);

  function short(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
    if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
    if (size < 1e-4) return value.toExponential(Number(value.toPrecision(2)) === value ? 0 : 1);
    return String(Number(value.toPrecision(3)));
  }

  // -- Header

  byId("status").textContent = report.status;
  for (const note of report.notes) byId("notes").append(element("p", { class: "note" }, note));
  for (const [name, value] of report.figures) {
    byId("figures").append(element("div", null,
      element("dt", null, name), element("dd", null, value)));
  }
  byId("figures").hidden = !report.figures.length;
  byId("footer").textContent = report.made;

  // -- Curves

  function ticks(low, high, most) {
    const raw = (high - low) / most;
    const unit = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * unit).find((s) => s >= raw * 0.999);
    const found = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) {
      found.push(Number((n * step).toPrecision(12)));
    }
    return found;
  }

  function span(values, fromZero) {
    let low = Infinity;
    let high = -Infinity;
    for (const value of values) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    if (fromZero) low = Math.min(low, 0);
    if (high === low) {
      high += Math.abs(high) * 0.1 || 1;
      if (!fromZero) low -= Math.abs(low) * 0.1 || 1;
    }
    const room = (high - low) * 0.06;
    return [fromZero && low === 0 ? 0 : low - room, high + room];
  }

  // A curve is {title, first, zero, best: "least" | "most" | null, lines: [{name, points, dots}]}.
  function chart(curve) {
    const lines = curve.lines.filter((line) => line.points.length);
    const last = (line) => line.points[line.points.length - 1];
    const labeled = (line, text) => (lines.length > 1 ? `${line.name} ${text}` : text);
    const end = Math.max(...lines.map((line) => last(line)[0]));
    const summary = lines.map((line) => {
      let text = labeled(line, short(last(line)[1]));
      if (end - last(line)[0] > 0.5) text += ` (epoch ${short(last(line)[0])})`;
      if (line.dots && curve.best && line.points.length > 1) {
        const better = curve.best === "most" ? (a, b) => b[1] > a[1] : (a, b) => b[1] < a[1];
        const best = line.points.reduce((a, b) => (better(a, b) ? b : a));
        text += ` (best ${short(best[1])} at epoch ${short(best[0])})`;
      }
      return text;
    }).join(", ");
    const readout = element("p", { class: "readout" }, `Epoch ${short(end)}: ${summary}`);
    const keys = lines.length < 2 ? [] : lines.map((line, n) =>
      element("span", { class: n ? "key two" : "key" }, line.name));
    const svg = svgElement("svg", {
      role: "img", tabindex: "0",
      "aria-label": `${curve.title} by epoch: ${summary}. Use the arrow keys to read values.`,
    });
    const figure = element("figure", { class: curve.first ? "chart first" : "chart" },
      element("figcaption", null, element("h3", null, curve.title), ...keys, readout), svg);
    byId("charts").append(figure);

    const all = lines.flatMap((line) => line.points);
    const [bottom, top] = span(all.map((p) => p[1]), curve.zero);
    const right = Math.max(...all.map((p) => p[0]));
    const left = Math.min(0, ...all.map((p) => p[0]));
    const stops = [...new Set(all.map((p) => p[0]))].sort((a, b) => a - b);
    const yTicks = ticks(bottom, top, curve.first ? 6 : 4);
    const margin = 12 + 7 * Math.max(...yTicks.map((y) => short(y).length));
    const height = curve.first ? 240 : 150;
    let X = null;
    let Y = null;
    let selected = -1;
    let overlay = null;

    function draw() {
      const width = Math.max(svg.clientWidth, 120);
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.setAttribute("height", height);
      X = (x) => margin + ((x - left) / (right - left || 1)) * (width - margin - 10);
      Y = (y) => height - 24 - ((y - bottom) / (top - bottom)) * (height - 32);
      svg.replaceChildren();
      for (const y of yTicks) {
        svg.append(
          svgElement("line", { class: "grid", x1: margin, x2: width - 10, y1: Y(y), y2: Y(y) }),
          svgElement("text", { x: margin - 6, y: Y(y) + 4, "text-anchor": "end" }, short(y)),
        );
      }
      svg.append(svgElement("line",
        { class: "axis", x1: margin, x2: width - 10, y1: height - 24, y2: height - 24 }));
      const room = Math.max(2, Math.min(12, Math.floor((width - margin) / 45)));
      for (const x of ticks(left, right || 1, room)) {
        if (right >= 3 && !Number.isInteger(x)) continue;
        svg.append(svgElement("text",
          { x: X(x), y: height - 7, "text-anchor": "middle" }, short(x)));
      }
      lines.forEach((line, n) => {
        const kind = n ? "two" : "one";
        const path = line.points.map(([x, y]) => `${X(x).toFixed(1)},${Y(y).toFixed(1)}`);
        svg.append(svgElement("path", { class: kind, d: `M${path.join("L")}` }));
        if (line.points.length === 1 || (line.dots && line.points.length <= 60)) {
          for (const [x, y] of line.points) {
            svg.append(svgElement("circle", { class: kind, cx: X(x), cy: Y(y), r: 3 }));
          }
        }
      });
      overlay = svgElement("g", {});
      svg.append(overlay);
      select(selected);
    }

    function select(n) {
      selected = n;
      overlay.replaceChildren();
      if (n < 0) return;
      const x = stops[n];
      overlay.append(svgElement("line",
        { class: "cursor", x1: X(x), x2: X(x), y1: 8, y2: height - 24 }));
      const parts = [];
      lines.forEach((line, k) => {
        const distance = (p) => Math.abs(p[0] - x);
        const near = line.points.reduce((a, b) => (distance(b) < distance(a) ? b : a));
        // Show no value if the line has none within half an epoch.
        if (distance(near) > 0.5 && line.points.length > 1) return;
        overlay.append(svgElement("circle",
          { class: `selected ${k ? "two" : "one"}`, cx: X(near[0]), cy: Y(near[1]), r: 5 }));
        const where = near[0] === x ? "" : ` (epoch ${short(near[0])})`;
        parts.push(labeled(line, `${short(near[1])}${where}`));
      });
      readout.textContent = `Epoch ${short(x)}: ${parts.join(", ")}`;
    }

    const reset = () => {
      select(-1);
      readout.textContent = `Epoch ${short(end)}: ${summary}`;
    };
    const onPointer = (event) => {
      const x = event.clientX - svg.getBoundingClientRect().left;
      let best = 0;
      stops.forEach((stop, n) => {
        if (Math.abs(X(stop) - x) < Math.abs(X(stops[best]) - x)) best = n;
      });
      select(best);
    };
    svg.addEventListener("pointermove", onPointer);
    svg.addEventListener("pointerdown", onPointer);
    svg.addEventListener("pointerleave", reset);
    svg.addEventListener("blur", reset);
    svg.addEventListener("keydown", (event) => {
      const to = {
        ArrowLeft: selected < 0 ? stops.length - 1 : selected - 1, ArrowRight: selected + 1,
        Home: 0, End: stops.length - 1,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      select(Math.min(Math.max(to, 0), stops.length - 1));
    });
    new ResizeObserver(draw).observe(svg);
    draw();
  }

  const curves = report.curves.filter((curve) => curve.lines.some((line) => line.points.length));
  byId("curves-section").hidden = !curves.length;
  curves.forEach(chart);
  if (report.shape) document.documentElement.style.setProperty("--shape", report.shape);

  // -- Tables

  byId("tables-section").hidden = !report.tables.length;
  for (const table of report.tables) {
    const head = table.columns.map((column) => element("th", { scope: "col" }, column));
    const rows = table.rows.map(([name, ...values]) => element("tr", null,
      element("th", { scope: "row" }, name), ...values.map((value) => element("td", null, value))));
    const body = element("table", { class: table.numbers ? "numbers" : "" },
      table.columns.length ? element("thead", null, element("tr", null, ...head)) : null,
      element("tbody", null, ...rows));
    byId("tables").append(element("details", { id: table.id, open: table.open ? "" : null },
      element("summary", null, table.title),
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": table.title },
        body)));
  }

  // -- Captions

  const images = report.images;
  const methods = report.methods;
  const available = {
    cider: images.some((image) => image.captions.some((caption) => caption.cider !== null)),
    pictures: images.some((image) => image.picture) && images.some((image) => !image.picture),
    truth: images.some((image) => image.captions.some((caption) => caption.true !== null)),
  };
  const defaults = { find: "", sort: "shown", by: String(methods.length - 1), only: "all",
    probabilities: "", show: String(CARDS) };
  const state = { ...defaults };
  images.forEach((image, row) => {
    image.row = row;
    image.text = [image.name, ...image.references,
      ...image.captions.map((caption) => caption.words.map(([word]) => word).join(" ")),
    ].join("\n").toLowerCase();
  });

  function placeholder(image) {
    const icon = svgElement("svg", { viewBox: "0 0 34 26", "aria-hidden": "true" });
    icon.append(svgElement("rect", { x: 1, y: 1, width: 32, height: 24, rx: 4 }),
      svgElement("circle", { cx: 11, cy: 9, r: 3 }),
      svgElement("path", { d: "M2 21l8-6 5 4 8-9 9 10" }));
    return element("div", { class: "placeholder" }, icon, label(image));
  }

  function label(image) {
    if (!image.link) return element("p", { class: "name" }, image.name);
    return element("p", { class: "name" }, element("a",
      { href: image.link, target: "_blank", rel: "noopener noreferrer" }, image.name));
  }

  function sentence(caption) {
    const line = element("p", { class: "caption", role: "button", tabindex: "0",
      "aria-expanded": "false" });
    for (const [word, p] of caption.words) {
      const shown = element("span", { class: "word", "data-p": percent(p) }, word);
      shown.style.setProperty("--p", p);
      line.append(shown, " ");
    }
    if (!caption.words.length) line.append("(no words)");
    if (caption.end !== null) {
      const end = element("span", { class: "word end", "data-p": percent(caption.end) }, "end");
      end.style.setProperty("--p", caption.end);
      line.append(end);
    }
    return line;
  }

  function highlighted(text, terms) {
    const line = element("li");
    let rest = text;
    while (terms.length && rest) {
      const low = rest.toLowerCase();
      // If lower case has another length (dotted capital I), positions do not match: mark nothing.
      const found = low.length !== rest.length ? [] : terms.map((word) => [low.indexOf(word), word])
        .filter(([start]) => start >= 0)
        .sort((a, b) => a[0] - b[0] || b[1].length - a[1].length);
      if (!found.length) break;
      const [start, word] = found[0];
      line.append(rest.slice(0, start),
        element("mark", null, rest.slice(start, start + word.length)));
      rest = rest.slice(start + word.length);
    }
    line.append(rest);
    return line;
  }

  function card(image, terms) {
    const made = element("article", { class: "card", "data-row": image.row });
    if (image.picture) {
      made.append(element("img", { src: image.picture, alt: image.name, decoding: "async",
        class: image.pixels ? "pixels" : "" }));
    } else {
      made.append(placeholder(image));
    }
    const body = element("div", { class: "body" });
    if (image.picture) body.append(label(image));
    const groups = new Map();
    image.captions.forEach((caption, n) => {
      const text = caption.words.map(([word]) => word).join(" ");
      if (!groups.has(text)) groups.set(text, []);
      groups.get(text).push(n);
    });
    for (const same of groups.values()) {
      const caption = image.captions[same[0]];
      const info = element("div", { class: "info" },
        element("b", null, same.map((n) => methods[n]).join(" and ")));
      if (caption.cider !== null) {
        info.append(element("span", null, `CIDEr ${(100 * caption.cider).toFixed(1)}`));
      }
      info.append(element("span", null, `${percent(caption.probability)} per word`));
      if (caption.true !== null) {
        info.append(element("span", { class: caption.true ? "true" : "false" },
          caption.true ? "✓ true" : "✗ false"));
      }
      body.append(element("div", null, info, sentence(caption)));
    }
    if (image.references.length) {
      body.append(element("ul", { class: "references", "aria-label": "References" },
        ...image.references.map((reference) => highlighted(reference, terms))));
    }
    made.append(body);
    return made;
  }

  function expand(line, open) {
    line.setAttribute("aria-expanded", String(open));
  }
  document.addEventListener("click", (event) => {
    const line = event.target.closest(".caption");
    if (!line || String(window.getSelection())) return; // the user selects text
    expand(line, line.getAttribute("aria-expanded") !== "true");
  });
  document.addEventListener("keydown", (event) => {
    if (!event.target.matches(".caption") || (event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    expand(event.target, event.target.getAttribute("aria-expanded") !== "true");
  });

  function sortKey(image) {
    const caption = image.captions[Number(state.by)];
    switch (state.sort.split("-")[0]) {
      case "cider": return caption.cider;
      case "probability": return caption.probability;
      case "length": return caption.words.length;
      case "name": return image.name;
      default: return image.picture ? 0 : 1;
    }
  }

  function sorted(found, reverse, keyOf) {
    const keys = new Map(found.map((image) => [image, keyOf(image)]));
    return [...found].sort((one, two) => {
      const [a, b] = [keys.get(one), keys.get(two)];
      if (a === null || b === null) return (a === null) - (b === null) || one.row - two.row;
      const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
      return (reverse ? -order : order) || one.row - two.row;
    });
  }

  const searchTerms = () => state.find.toLowerCase().split(/\s+/).filter(Boolean);

  function matching() {
    const terms = searchTerms();
    const by = Number(state.by);
    const found = images.filter((image) => terms.every((word) => image.text.includes(word))
      && (state.only !== "pictures" || image.picture)
      && (state.only !== "true" || image.captions[by].true === true)
      && (state.only !== "false" || image.captions[by].true === false));
    return sorted(found, state.sort.endsWith("-down"), sortKey);
  }

  function setExpanded(cards) {
    const open = state.probabilities === "1";
    for (const line of cards.querySelectorAll(".caption")) expand(line, open);
  }

  let found = [];
  function show(more) {
    const terms = searchTerms();
    const from = more ? byId("gallery").childElementCount : 0;
    if (!more) found = matching();
    const added = document.createDocumentFragment();
    for (const image of found.slice(from, Number(state.show))) added.append(card(image, terms));
    setExpanded(added);
    if (more) byId("gallery").append(added);
    else byId("gallery").replaceChildren(added);
    byId("count").textContent = found.length === images.length ? `${count(images.length)} images`
      : `${count(found.length)} of ${count(images.length)} images`;
    const left = found.length - Number(state.show);
    byId("more").parentElement.hidden = left <= 0;
    byId("more").textContent = `Show ${Math.min(left, 2 * CARDS)} of ${count(left)} more`;
  }

  function extremes() {
    const by = Number(state.by);
    const measure = (image) => image.captions[by][available.cider ? "cider" : "probability"];
    let measured = images.filter((image) => measure(image) !== null);
    // A caption says little without its picture.
    const seen = measured.filter((image) => image.picture);
    const only = seen.length >= 8 && seen.length < measured.length;
    if (only) measured = seen;
    const most = Math.min(4, Math.floor(measured.length / 2));
    byId("extremes").hidden = most === 0;
    if (!most) return;
    const name = available.cider ? "CIDEr" : "word probability";
    byId("extremes-title").textContent = `Best and worst captions by ${name}`;
    byId("extremes-about").textContent = only
      ? `Of the ${count(seen.length)} images with pictures.` : "";
    byId("extremes-about").hidden = !only;
    byId("best-title").textContent = `Highest ${name}, ${methods[by]}`;
    byId("worst-title").textContent = `Lowest ${name}, ${methods[by]}`;
    const ranked = sorted(measured, true, measure);
    for (const [id, part] of [["best", ranked.slice(0, most)],
      ["worst", ranked.slice(-most).reverse()]]) {
      byId(id).replaceChildren(...part.map((image) => card(image, [])));
      setExpanded(byId(id));
    }
  }

  // -- The state of the gallery is kept in the address, for reloads and bookmarks

  function readAddress(text) {
    const given = new URLSearchParams(text);
    Object.assign(state, defaults);
    for (const name of Object.keys(defaults)) if (given.has(name)) state[name] = given.get(name);
    const valid = (id, value) => [...byId(id).options].some((o) => o.value === value);
    for (const name of ["sort", "by", "only"]) {
      if (!valid(name, state[name])) state[name] = defaults[name];
    }
    if (!/^\d{1,6}$/.test(state.show)) state.show = defaults.show;
    if (state.probabilities !== "1") state.probabilities = "";
    byId("find").value = state.find;
    byId("probabilities").checked = state.probabilities === "1";
    for (const name of ["sort", "by", "only"]) byId(name).value = state[name];
  }

  function writeAddress() {
    const text = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) {
      if (value !== defaults[name]) text.set(name, value);
    }
    try {
      history.replaceState(null, "", `#${text}`);
    } catch { /* Browsers limit the rate of changes; the next one has the whole state. */ }
  }

  if (images.length) {
    byId("gallery-section").hidden = false;
    methods.forEach((name, n) => byId("by").append(element("option", { value: n }, name)));
    byId("by-label").hidden = methods.length < 2;
    const options = { "cider-down": available.cider, "cider-up": available.cider,
      pictures: available.pictures, true: available.truth, false: available.truth };
    for (const option of document.querySelectorAll("#sort option, #only option")) {
      if (options[option.value] === false) option.remove();
    }
    if (!available.pictures) byId("sort").options[0].textContent = "order in the data";
    byId("only-label").hidden = byId("only").options.length < 2;
    readAddress(location.hash.slice(1));
    extremes();
    show();

    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    byId("find").addEventListener("input", () => {
      Object.assign(state, { find: byId("find").value, show: defaults.show });
      writeAddress();
      show();
    });
    for (const name of ["sort", "by", "only"]) {
      byId(name).addEventListener("change", () => {
        state[name] = byId(name).value;
        state.show = defaults.show;
        writeAddress();
        if (name === "by") extremes();
        show();
      });
    }
    byId("probabilities").addEventListener("change", () => {
      state.probabilities = byId("probabilities").checked ? "1" : "";
      writeAddress();
      setExpanded(document);
    });
    byId("more").addEventListener("click", () => {
      const first = byId("gallery").childElementCount;
      state.show = String(Number(state.show) + 2 * CARDS);
      writeAddress();
      show(true);
      // Move the focus to the first new card, because the button moves away.
      byId("gallery").children[first]?.querySelector(".caption")?.focus({ preventScroll: true });
    });
    window.addEventListener("hashchange", () => {
      readAddress(location.hash.slice(1));
      extremes();
      show();
    });
  }

  // -- Contents

  // Links that scroll, and leave alone the address, which has the state of the gallery.
  const parts = [["Summary", "top"], ["Training", "curves-section"],
    ["Numbers", "tables-section"], ["Best and worst", "extremes"], ["Why", "why"],
    ["All captions", "gallery-section"],
  ].map(([name, id]) => [name, id === "top" ? document.body : byId(id)])
    .filter(([, part]) => part && !part.hidden);
  for (const [name, part] of parts) {
    const link = element("a", { href: "#" }, name);
    link.addEventListener("click", (event) => {
      event.preventDefault();
      part.scrollIntoView();
    });
    byId("contents").append(link);
  }
  byId("contents").hidden = parts.length < 3;

  // -- Reloading during training

  // The browser restores only the scroll position.
  const storageKey = `fastrnn report ${location.pathname}`;
  const placeOf = (line) => {
    const row = line.closest(".card").dataset.row;
    const lines = [...line.closest(".card").querySelectorAll(".caption")];
    return [line.closest(".cards, .strip").id, row, lines.indexOf(line)];
  };
  function restore() {
    let saved = null;
    try {
      saved = JSON.parse(sessionStorage.getItem(storageKey));
      sessionStorage.removeItem(storageKey);
    } catch { /* without storage, nothing is restored */ }
    if (!saved) return;
    for (const [id, open] of Object.entries(saved.details)) if (byId(id)) byId(id).open = open;
    for (const [id, row, n] of saved.expanded) {
      const line = byId(id).querySelectorAll(`[data-row="${row}"] .caption`)[n];
      if (line) expand(line, true);
    }
    for (const id of ["best", "worst"]) byId(id).scrollLeft = saved[id];
    const focused = saved.focus && byId(saved.focus);
    if (focused) focused.focus({ preventScroll: true });
  }
  restore();

  if (report.reload !== null) {
    let touched = 0;
    for (const kind of ["pointerdown", "pointermove", "keydown", "input", "scroll"]) {
      window.addEventListener(kind, () => { touched = Date.now(); }, { passive: true });
    }
    const reload = () => {
      // Do not reload while the user reads, types or copies.
      const busy = Date.now() - touched < 1500 || String(window.getSelection())
        || document.querySelector(".word:hover, svg:focus-visible, select:focus");
      if (document.hidden || busy) {
        setTimeout(reload, 500);
        return;
      }
      const details = {};
      for (const part of document.querySelectorAll("details")) details[part.id] = part.open;
      const expanded = [...document.querySelectorAll("[aria-expanded=true]")].map(placeOf);
      try {
        sessionStorage.setItem(storageKey, JSON.stringify({
          details, expanded, focus: document.activeElement?.id || null,
          best: byId("best").scrollLeft, worst: byId("worst").scrollLeft,
        }));
      } catch { /* without storage, nothing is saved */ }
      location.reload();
    };
    setTimeout(reload, report.reload * 1000);
  }
})();
