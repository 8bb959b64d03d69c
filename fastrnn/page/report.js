"use strict";
// Draws a report from the data that lies in the page. All text is set as text, never as HTML.
(() => {
  const report = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const PAGE = 24;

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "class") made.className = value;
      else if (value !== null && value !== undefined) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  function drawing(tag, attributes, text) {
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

  // -- what is at the top

  at("status").textContent = report.status;
  for (const note of report.notes) at("notes").append(element("p", { class: "note" }, note));
  for (const [name, value] of report.figures) {
    at("figures").append(element("div", null, element("dt", null, name), element("dd", null, value)));
  }
  at("figures").hidden = !report.figures.length;
  at("footer").textContent = report.made;

  // -- curves

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
    const end = Math.max(...lines.map((line) => last(line)[0]));
    const summary = lines.map((line) => {
      let text = `${line.name} ${short(last(line)[1])}`;
      if (end - last(line)[0] > 0.5) text += ` (epoch ${short(last(line)[0])})`;
      if (line.dots && curve.best && line.points.length > 1) {
        const better = curve.best === "most" ? (a, b) => b[1] > a[1] : (a, b) => b[1] < a[1];
        const best = line.points.reduce((a, b) => (better(a, b) ? b : a));
        text += `, best ${short(best[1])} after epoch ${short(best[0])}`;
      }
      return text;
    }).join("; ");
    const read = element("p", { class: "read" }, `at epoch ${short(end)}: ${summary}`);
    const keys = lines.length < 2 ? [] : lines.map((line, n) =>
      element("span", { class: n ? "key two" : "key" }, line.name));
    const svg = drawing("svg", {
      role: "img", tabindex: "0",
      "aria-label": `${curve.title} by epoch. ${summary}. Left and right arrow keys read values.`,
    });
    const figure = element("figure", { class: curve.first ? "chart first" : "chart" },
      element("figcaption", null, element("h3", null, curve.title), ...keys, read), svg);
    at("charts").append(figure);

    const all = lines.flatMap((line) => line.points);
    const [bottom, top] = span(all.map((p) => p[1]), curve.zero);
    const right = Math.max(...all.map((p) => p[0]));
    const left = Math.min(0, ...all.map((p) => p[0]));
    const stops = [...new Set(all.map((p) => p[0]))].sort((a, b) => a - b);
    const marks = ticks(bottom, top, curve.first ? 5 : 3);
    const side = 12 + 7 * Math.max(...marks.map((y) => short(y).length));
    const high = curve.first ? 240 : 150;
    let X = null;
    let Y = null;
    let here = -1;
    let overlay = null;

    function draw() {
      const wide = Math.max(svg.clientWidth, 120);
      svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
      svg.setAttribute("height", high);
      X = (x) => side + ((x - left) / (right - left || 1)) * (wide - side - 10);
      Y = (y) => high - 24 - ((y - bottom) / (top - bottom)) * (high - 32);
      svg.replaceChildren();
      for (const y of marks) {
        svg.append(
          drawing("line", { class: "grid", x1: side, x2: wide - 10, y1: Y(y), y2: Y(y) }),
          drawing("text", { x: side - 6, y: Y(y) + 4, "text-anchor": "end" }, short(y)),
        );
      }
      svg.append(drawing("line",
        { class: "axis", x1: side, x2: wide - 10, y1: high - 24, y2: high - 24 }));
      const room = Math.max(2, Math.min(12, Math.floor((wide - side) / 45)));
      for (const x of ticks(left, right || 1, room)) {
        if (right >= 3 && !Number.isInteger(x)) continue;
        svg.append(drawing("text", { x: X(x), y: high - 7, "text-anchor": "middle" }, short(x)));
      }
      lines.forEach((line, n) => {
        const kind = n ? "two" : "one";
        const path = line.points.map(([x, y]) => `${X(x).toFixed(1)},${Y(y).toFixed(1)}`);
        svg.append(drawing("path", { class: kind, d: `M${path.join("L")}` }));
        if (line.points.length === 1 || (line.dots && line.points.length <= 60)) {
          for (const [x, y] of line.points) {
            svg.append(drawing("circle", { class: kind, cx: X(x), cy: Y(y), r: 3 }));
          }
        }
      });
      overlay = drawing("g", {});
      svg.append(overlay);
      point(here);
    }

    function point(n) {
      here = n;
      overlay.replaceChildren();
      if (n < 0) return;
      const x = stops[n];
      overlay.append(drawing("line", { class: "cursor", x1: X(x), x2: X(x), y1: 8, y2: high - 24 }));
      const parts = [];
      lines.forEach((line, k) => {
        const near = line.points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
        // A line is read only where it is, to within an epoch.
        if (Math.abs(near[0] - x) > 0.5 && line.points.length > 1) return;
        overlay.append(drawing("circle",
          { class: `here ${k ? "two" : "one"}`, cx: X(near[0]), cy: Y(near[1]), r: 5 }));
        const where = near[0] === x ? "" : ` (epoch ${short(near[0])})`;
        parts.push(`${line.name} ${short(near[1])}${where}`);
      });
      read.textContent = `at epoch ${short(x)}: ${parts.join("; ")}`;
    }

    const rest = () => {
      point(-1);
      read.textContent = `at epoch ${short(end)}: ${summary}`;
    };
    const follow = (event) => {
      const x = event.clientX - svg.getBoundingClientRect().left;
      let best = 0;
      stops.forEach((stop, n) => {
        if (Math.abs(X(stop) - x) < Math.abs(X(stops[best]) - x)) best = n;
      });
      point(best);
    };
    svg.addEventListener("pointermove", follow);
    svg.addEventListener("pointerdown", follow);
    svg.addEventListener("pointerleave", rest);
    svg.addEventListener("blur", rest);
    svg.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: here < 0 ? stops.length - 1 : here - 1, ArrowRight: here + 1, Home: 0,
        End: stops.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      point(Math.min(Math.max(to, 0), stops.length - 1));
    });
    new ResizeObserver(draw).observe(svg);
    draw();
  }

  const curves = report.curves.filter((curve) => curve.lines.some((line) => line.points.length));
  at("curves-section").hidden = !curves.length;
  curves.forEach(chart);

  // -- tables

  for (const table of report.tables) {
    const head = table.columns.map((column) => element("th", { scope: "col" }, column));
    const rows = table.rows.map(([name, ...values]) => element("tr", null,
      element("th", { scope: "row" }, name), ...values.map((value) => element("td", null, value))));
    const body = element("table", { class: table.numbers ? "numbers" : "" },
      table.columns.length ? element("thead", null, element("tr", null, ...head)) : null,
      element("tbody", null, ...rows));
    at("tables").append(element("details", { id: table.id, open: table.open ? "" : null },
      element("summary", null, table.title),
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": table.title },
        body)));
  }

  // -- captions

  const images = report.images;
  const methods = report.methods;
  const known = {
    cider: images.some((image) => image.said.some((said) => said.cider !== null)),
    pictures: images.some((image) => image.picture) && images.some((image) => !image.picture),
    truth: images.some((image) => image.said.some((said) => said.true !== null)),
  };
  const usual = { find: "", sort: "shown", order: "", by: String(methods.length - 1), only: "all",
    odds: "", show: String(PAGE) };
  const falls = { shown: false, cider: true, probability: true, length: true, name: false };
  const state = { ...usual };
  images.forEach((image, row) => {
    image.row = row;
    image.text = [image.name, ...image.references,
      ...image.said.map((said) => said.words.map(([word]) => word).join(" ")),
    ].join("\n").toLowerCase();
  });

  function band(image) {
    const icon = drawing("svg", { viewBox: "0 0 34 26", "aria-hidden": "true" });
    icon.append(drawing("rect", { x: 1, y: 1, width: 32, height: 24, rx: 4 }),
      drawing("circle", { cx: 11, cy: 9, r: 3 }),
      drawing("path", { d: "M2 21l8-6 5 4 8-9 9 10" }));
    return element("div", { class: "band" }, icon, label(image));
  }

  function label(image) {
    if (!image.link) return element("p", { class: "name" }, image.name);
    return element("p", { class: "name" }, element("a",
      { href: image.link, target: "_blank", rel: "noopener noreferrer" }, image.name));
  }

  function sentence(said) {
    const line = element("p", { class: "said", role: "button", tabindex: "0",
      "aria-expanded": "false" });
    for (const [word, p] of said.words) {
      const shown = element("span", { class: "word", "data-p": percent(p) }, word);
      shown.style.setProperty("--p", p);
      line.append(shown, " ");
    }
    if (!said.words.length) line.append("(no words)");
    if (said.end !== null) {
      const end = element("span", { class: "word end", "data-p": percent(said.end) }, "end");
      end.style.setProperty("--p", said.end);
      line.append(end);
    }
    return line;
  }

  function marked(text, wanted) {
    const line = element("li");
    let rest = text;
    while (wanted.length && rest) {
      const low = rest.toLowerCase();
      // Lower case may be longer than the text itself (a dotted capital I): then nothing is marked.
      const found = low.length !== rest.length ? [] : wanted.map((word) => [low.indexOf(word), word])
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

  function card(image, wanted) {
    const made = element("article", { class: "card", "data-row": image.row });
    if (image.picture) {
      made.append(element("img", { src: image.picture, alt: image.name, decoding: "async",
        class: image.pixels ? "pixels" : "" }));
    } else {
      made.append(band(image));
    }
    const body = element("div", { class: "body" });
    if (image.picture) body.append(label(image));
    const groups = new Map();
    image.said.forEach((said, n) => {
      const text = said.words.map(([word]) => word).join(" ");
      if (!groups.has(text)) groups.set(text, []);
      groups.get(text).push(n);
    });
    for (const ways of groups.values()) {
      const said = image.said[ways[0]];
      const how = element("div", { class: "how" },
        element("b", null, ways.map((n) => methods[n]).join(" and ")));
      if (said.cider !== null) how.append(element("span", null, `CIDEr ${said.cider.toFixed(2)}`));
      how.append(element("span", null, `${percent(said.probability)} a word`));
      if (said.true !== null) {
        how.append(element("span", { class: said.true ? "true" : "false" },
          said.true ? "✓ true" : "✗ false"));
      }
      body.append(element("div", null, how, sentence(said)));
    }
    if (image.references.length) {
      body.append(element("ul", { class: "references", "aria-label": "References" },
        ...image.references.map((reference) => marked(reference, wanted))));
    }
    made.append(body);
    return made;
  }

  function expand(line, open) {
    line.setAttribute("aria-expanded", String(open));
  }
  document.addEventListener("click", (event) => {
    const line = event.target.closest(".said");
    if (!line || String(window.getSelection())) return; // text that is being copied
    expand(line, line.getAttribute("aria-expanded") !== "true");
  });
  document.addEventListener("keydown", (event) => {
    if (!event.target.matches(".said") || (event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    expand(event.target, event.target.getAttribute("aria-expanded") !== "true");
  });

  function key(image) {
    const said = image.said[Number(state.by)];
    switch (state.sort) {
      case "cider": return said.cider;
      case "probability": return said.probability;
      case "length": return said.words.length;
      case "name": return image.name;
      default: return image.picture ? 0 : 1;
    }
  }

  function sorted(found, falling, of) {
    const keys = new Map(found.map((image) => [image, of(image)]));
    return [...found].sort((one, two) => {
      const [a, b] = [keys.get(one), keys.get(two)];
      if (a === null || b === null) return (a === null) - (b === null) || one.row - two.row;
      const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
      return (falling ? -order : order) || one.row - two.row;
    });
  }

  const words = () => state.find.toLowerCase().split(/\s+/).filter(Boolean);
  const falling = () => (state.order ? state.order === "down" : falls[state.sort]);

  function chosen() {
    const wanted = words();
    const by = Number(state.by);
    const found = images.filter((image) => wanted.every((word) => image.text.includes(word))
      && (state.only !== "pictures" || image.picture)
      && (state.only !== "true" || image.said[by].true === true)
      && (state.only !== "false" || image.said[by].true === false));
    return sorted(found, falling(), key);
  }

  function opened(cards) {
    for (const line of cards.querySelectorAll(".said")) expand(line, state.odds === "1");
  }

  let found = [];
  function show(more) {
    const wanted = words();
    const from = more ? at("gallery").childElementCount : 0;
    if (!more) found = chosen();
    const added = document.createDocumentFragment();
    for (const image of found.slice(from, Number(state.show))) added.append(card(image, wanted));
    opened(added);
    if (more) at("gallery").append(added);
    else at("gallery").replaceChildren(added);
    at("count").textContent = found.length === images.length ? `${count(images.length)} pictures`
      : found.length ? `${count(found.length)} of ${count(images.length)} pictures`
        : `None of ${count(images.length)} pictures`;
    const left = found.length - Number(state.show);
    at("more").parentElement.hidden = left <= 0;
    at("more").textContent = `Show ${Math.min(left, 2 * PAGE)} more of ${count(left)}`;
  }

  function extremes() {
    const by = Number(state.by);
    const measure = (image) => (known.cider ? image.said[by].cider : image.said[by].probability);
    const measured = images.filter((image) => measure(image) !== null);
    const most = Math.min(4, Math.floor(measured.length / 2));
    at("extremes").hidden = most === 0;
    if (!most) return;
    const name = known.cider ? "CIDEr" : "probability";
    at("extremes-title").textContent = `Best and worst by ${name}`;
    at("best-title").textContent = `Highest ${name}, ${methods[by]}`;
    at("worst-title").textContent = `Lowest ${name}, ${methods[by]}`;
    const ranked = sorted(measured, true, measure);
    for (const [id, part] of [["best", ranked.slice(0, most)],
      ["worst", ranked.slice(-most).reverse()]]) {
      at(id).replaceChildren(...part.map((image) => card(image, [])));
      opened(at(id));
    }
  }

  // -- what is chosen stays in the address, so that a reload or a bookmark brings it back

  function accept(text) {
    const given = new URLSearchParams(text);
    Object.assign(state, usual);
    for (const name of Object.keys(usual)) if (given.has(name)) state[name] = given.get(name);
    const valid = (id, value) => [...at(id).options].some((o) => o.value === value);
    for (const name of ["sort", "by", "only"]) {
      if (!valid(name, state[name])) state[name] = usual[name];
    }
    if (!["up", "down"].includes(state.order)) state.order = "";
    if (!/^\d{1,6}$/.test(state.show)) state.show = usual.show;
    if (state.odds !== "1") state.odds = "";
    at("find").value = state.find;
    at("odds").checked = state.odds === "1";
    for (const name of ["sort", "by", "only"]) at(name).value = state[name];
    at("order").value = falling() ? "down" : "up";
  }

  function keep() {
    const text = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) {
      if (value !== usual[name]) text.set(name, value);
    }
    try {
      history.replaceState(null, "", `#${text}`);
    } catch { /* Browsers allow only so many changes in a while; the next one says it all. */ }
  }

  if (images.length) {
    at("gallery-section").hidden = false;
    methods.forEach((name, n) => at("by").append(element("option", { value: n }, name)));
    at("by-label").hidden = methods.length < 2;
    const options = { cider: known.cider, pictures: known.pictures, true: known.truth,
      false: known.truth };
    for (const option of document.querySelectorAll("#sort option, #only option")) {
      if (options[option.value] === false) option.remove();
    }
    if (!known.pictures) at("sort").options[0].textContent = "place in the data";
    at("only-label").hidden = at("only").options.length < 2;
    accept(location.hash.slice(1));
    extremes();
    show();

    at("controls").addEventListener("submit", (event) => event.preventDefault());
    at("find").addEventListener("input", () => {
      Object.assign(state, { find: at("find").value, show: usual.show });
      keep();
      show();
    });
    for (const name of ["sort", "order", "by", "only"]) {
      at(name).addEventListener("change", () => {
        state[name] = at(name).value;
        if (name === "sort") state.order = "";
        if (state.order === (falls[state.sort] ? "down" : "up")) state.order = "";
        at("order").value = falling() ? "down" : "up";
        state.show = usual.show;
        keep();
        if (name === "by") extremes();
        show();
      });
    }
    at("odds").addEventListener("change", () => {
      state.odds = at("odds").checked ? "1" : "";
      keep();
      opened(document);
    });
    at("more").addEventListener("click", () => {
      const first = at("gallery").childElementCount;
      state.show = String(Number(state.show) + 2 * PAGE);
      keep();
      show(true);
      // The button moves away: whoever pressed it goes on with the first new card.
      at("gallery").children[first]?.querySelector(".said")?.focus({ preventScroll: true });
    });
    window.addEventListener("hashchange", () => {
      accept(location.hash.slice(1));
      extremes();
      show();
    });
  }

  // -- while training runs

  // A reloaded page is scrolled by the browser to where it was; the rest is this script's to keep.
  const place = `fastrnn report ${location.pathname}`;
  const where = (line) => {
    const row = line.closest(".card").dataset.row;
    const lines = [...line.closest(".card").querySelectorAll(".said")];
    return [line.closest(".cards, .strip").id, row, lines.indexOf(line)];
  };
  function recall() {
    let was = null;
    try {
      was = JSON.parse(sessionStorage.getItem(place));
      sessionStorage.removeItem(place);
    } catch { /* no storage: the page starts at its top */ }
    if (!was) return;
    for (const [id, open] of Object.entries(was.details)) if (at(id)) at(id).open = open;
    for (const [id, row, n] of was.unfolded) {
      const line = at(id).querySelectorAll(`[data-row="${row}"] .said`)[n];
      if (line) expand(line, true);
    }
    for (const id of ["best", "worst"]) at(id).scrollLeft = was[id];
    const focused = was.focus && at(was.focus);
    if (focused) focused.focus({ preventScroll: true });
  }
  recall();

  if (report.reload !== null) {
    let touched = 0;
    for (const kind of ["pointerdown", "pointermove", "keydown", "input", "scroll"]) {
      window.addEventListener(kind, () => { touched = Date.now(); }, { passive: true });
    }
    const reload = () => {
      // Nobody is torn from what they read, type, or copy.
      const busy = Date.now() - touched < 1500 || String(window.getSelection())
        || document.querySelector(".word:hover, svg:focus-visible, select:focus");
      if (document.hidden || busy) {
        setTimeout(reload, 500);
        return;
      }
      const details = {};
      for (const part of document.querySelectorAll("details")) details[part.id] = part.open;
      const unfolded = [...document.querySelectorAll("[aria-expanded=true]")].map(where);
      try {
        sessionStorage.setItem(place, JSON.stringify({
          details, unfolded, focus: document.activeElement?.id || null,
          best: at("best").scrollLeft, worst: at("worst").scrollLeft,
        }));
      } catch { /* as above */ }
      location.reload();
    };
    setTimeout(reload, report.reload * 1000);
  }
})();
