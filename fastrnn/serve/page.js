"use strict";
// Sends a picture to the server, and shows what it answers. Text is never parsed as HTML.
(() => {
  const byId = (id) => document.getElementById(id);
  const state = {
    about: null, // what the server says of itself
    file: null, // the picture
    answer: null, // its captions
    url: null, // of the picture, for <img>
    sent: null, // the request for captions under way
    asked: null, // the request for maps under way
    word: null, // [caption, step] that is chosen
    maps: new Map(), // "caption step method" to the map
  };

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "class") made.className = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  const percent = (p) => (p >= 0.9995 ? "100%" : p >= 0.095 ? `${Math.round(100 * p)}%`
    : p >= 0.0005 ? `${(100 * p).toFixed(1)}%` : "<0.1%");
  const megabytes = (bytes) => `${(bytes / 1e6).toPrecision(3)} MB`;
  const shown = (word) => ({ "<END>": "end", "<UNK>": "unknown word" }[word] || word);

  function say(text) {
    byId("status").textContent = text;
  }

  function complain(text) {
    byId("fault").textContent = text;
    byId("fault").hidden = !text;
    if (text) say("");
  }

  // The answer to a request as JSON, or an Error with what the server says.
  async function ask(path, options) {
    let answer;
    try {
      answer = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer. Is it still running?");
    }
    const found = await answer.json().catch(() => ({}));
    if (answer.ok) return found;
    const detail = typeof found.detail === "string" ? found.detail : answer.statusText;
    throw new Error(detail ? detail[0].toUpperCase() + detail.slice(1) : `Error ${answer.status}`);
  }

  function form(fields) {
    const made = new FormData();
    for (const [name, value] of Object.entries(fields)) made.append(name, value);
    made.append("file", state.file, "picture"); // the name is nobody's business
    return made;
  }

  // -- A picture comes

  function take(files) {
    const file = [...files].find((one) => one.type.startsWith("image/")) || files[0];
    if (!file) {
      complain("That is no picture. Save it as a file first, and drop or choose the file.");
      return;
    }
    state.file = file;
    state.more = files.length - 1;
    caption();
  }

  async function caption() {
    const { file, about } = state;
    if (!file) return;
    if (state.sent) state.sent.abort();
    complain("");
    if (about && file.size > about.upload_bytes) {
      byId("result").hidden = true;
      complain(`${file.name} has ${megabytes(file.size)}; the server takes at most `
        + `${megabytes(about.upload_bytes)}.`);
      return;
    }
    const sent = new AbortController();
    state.sent = sent;
    say("Captioning…");
    document.body.classList.add("busy");
    try {
      const body = form({ beam: byId("beam").value, n_best: byId("count").value, alternatives: 5 });
      const answer = await ask("caption", { method: "POST", body, signal: sent.signal });
      if (state.sent === sent) show(answer);
    } catch (error) {
      if (error.name !== "AbortError" && state.sent === sent) {
        byId("result").hidden = true;
        complain(error.message);
      }
    } finally {
      if (state.sent === sent) {
        state.sent = null;
        document.body.classList.remove("busy");
      }
    }
  }

  // -- The answer is shown

  function show(answer) {
    const { file } = state;
    state.answer = answer;
    state.word = null;
    state.maps.clear();
    if (state.asked) state.asked.abort();
    if (state.url) URL.revokeObjectURL(state.url);
    state.url = URL.createObjectURL(file);
    byId("unshown").hidden = true;
    byId("shown").hidden = false;
    byId("shown").src = state.url;
    byId("said").append(byId("step"));
    byId("name").textContent = file.name || "picture";
    byId("captions").replaceChildren(...answer.captions.map(card));
    byId("result").hidden = false;
    const more = state.more ? ` One picture at a time: ${state.more} more were left out.` : "";
    say(`${answer.caption ? `“${answer.caption}”` : "The caption is empty."} `
      + `(${Math.max(1, Math.round(1000 * answer.seconds))} ms)${more}`);
    choose(null);
    document.body.classList.add("answered");
    if (byId("result").getBoundingClientRect().top > window.innerHeight / 2) {
      byId("status").scrollIntoView();
    }
  }

  function card(caption, index) {
    const words = element("div", { class: "words", role: "group",
      "aria-label": `Caption ${index + 1}: ${caption.caption}` });
    caption.words.forEach((word, step) => {
      const button = element("button", { type: "button", "aria-pressed": "false",
        class: word.word === "<END>" ? "word end" : "word",
        "aria-label": `${shown(word.word)}, ${percent(word.probability)}` },
      element("span", null, shown(word.word)),
      element("span", { class: "p" }, percent(word.probability)));
      button.style.setProperty("--p", word.probability);
      button.addEventListener("click", () => choose([index, step]));
      words.append(button);
    });
    words.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const all = [...words.children];
      const next = by && all[all.indexOf(event.target) + by];
      if (next) {
        event.preventDefault();
        next.focus();
      }
    });
    const sure = Math.exp(caption.log_prob / Math.max(caption.words.length, 1));
    return element("li", { class: "card" },
      element("div", { class: "info" }, element("span", null, `Caption ${index + 1}`),
        element("span", null, `${percent(sure)} a word, log-probability `
          + `${caption.log_prob.toFixed(2)}`)),
      words);
  }

  const chosen = () => {
    if (!state.word) return null;
    const [index, step] = state.word;
    return state.answer.captions[index].words[step];
  };

  function choose(place) {
    const again = place && state.word && place.join() === state.word.join();
    state.word = again ? null : place;
    const lists = byId("captions").querySelectorAll(".words");
    lists.forEach((list, index) => [...list.children].forEach((button, step) => {
      const on = state.word && state.word[0] === index && state.word[1] === step;
      button.setAttribute("aria-pressed", String(Boolean(on)));
    }));
    const word = chosen();
    if (word) byId("captions").children[state.word[0]].append(byId("step"));
    else byId("said").append(byId("step"));
    byId("step-title").textContent = !word ? "Choose a word"
      : word.word === "<END>" ? "Where the caption ends" : `Instead of “${shown(word.word)}”`;
    byId("step-about").textContent = word ? "The most probable words at this step:"
      : "Words are shaded where the model was unsure. Choose one to see what else it could have been"
        + `${state.about && state.about.maps.available ? ", and where the network looked" : ""}.`;
    byId("alternatives").replaceChildren(...(word ? alternatives(word) : []));
    showMap();
  }

  function alternatives(word) {
    const rows = [...word.alternatives];
    if (!rows.some((other) => other.word === word.word)) rows.push(word);
    return rows.map((other) => {
      const own = other.word === word.word;
      const bar = element("span", null);
      bar.style.setProperty("--p", other.probability);
      return element("li", null,
        element("span", { class: own ? "other said-word" : "other" }, shown(other.word)),
        element("span", { class: "bar", "aria-hidden": "true" }, bar),
        element("span", { class: "p" }, percent(other.probability)));
    });
  }

  // -- Maps

  function hideMap(text) {
    byId("map").hidden = true;
    byId("frame").classList.remove("mapped", "computing");
    byId("map-about").textContent = text;
  }

  async function showMap() {
    const maps = state.about && state.about.maps;
    byId("maps").hidden = !(maps && maps.available && chosen());
    byId("no-maps").hidden = !maps || maps.available;
    if (maps && !maps.available) byId("no-maps").textContent = maps.why;
    if (state.asked) state.asked.abort();
    const word = chosen();
    if (!maps || !maps.available || !word || !byId("show-map").checked) {
      hideMap("");
      return;
    }
    const [index, step] = state.word;
    const method = byId("method").value;
    const key = `${index} ${step} ${method}`;
    if (word.word === "<END>") {
      hideMap("There is no map for the end of a caption.");
      return;
    }
    if (!state.maps.has(key)) {
      hideMap("Computing the map…");
      byId("frame").classList.add("computing");
      const asked = new AbortController();
      state.asked = asked;
      try {
        const body = form({ caption: state.answer.captions[index].caption, method, step });
        const found = await ask("saliency", { method: "POST", body, signal: asked.signal });
        state.maps.set(key, found.maps[0]);
      } catch (error) {
        if (error.name !== "AbortError") hideMap(error.message);
        return;
      } finally {
        if (state.asked === asked) state.asked = null;
      }
    }
    await draw(state.maps.get(key));
  }

  // The values of a map are its gray levels. They are blurred a little, since single pixels are
  // hard to see, and shown from transparent to yellow.
  async function draw(map) {
    const image = new Image();
    image.src = map.image;
    const { word } = state;
    await image.decode();
    if (state.word !== word || !byId("show-map").checked) return; // something else was chosen
    const canvas = byId("map");
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    canvas.width = image.width;
    canvas.height = image.height;
    pen.filter = `blur(${image.width / 80}px)`;
    pen.drawImage(image, 0, 0);
    const pixels = pen.getImageData(0, 0, image.width, image.height);
    const { data } = pixels;
    let most = 1;
    for (let k = 0; k < data.length; k += 4) most = Math.max(most, data[k]);
    for (let k = 0; k < data.length; k += 4) {
      const value = data[k] / most;
      data[k] = 255;
      data[k + 1] = Math.round(255 * Math.min(1, 0.1 + 0.9 * value));
      data[k + 2] = Math.round(255 * Math.max(0, 1.6 * value - 0.9));
      data[k + 3] = Math.round(255 * Math.min(0.92, 1.25 * value));
    }
    pen.putImageData(pixels, 0, 0);
    place();
    hideMap("");
    canvas.hidden = byId("shown").hidden;
    byId("frame").classList.add("mapped");
    byId("map-about").textContent = `Bright: pixels that change the probability of `
      + `“${shown(chosen().word)}” most.`;
  }

  // The picture fills the frame, small ones up to three times their size. The map lies over the
  // square in the middle, which the network read.
  function place() {
    const picture = byId("shown");
    const { naturalWidth: width, naturalHeight: height } = picture;
    if (!width) return;
    const most = parseFloat(getComputedStyle(picture).maxHeight);
    const scale = Math.min(byId("frame").clientWidth / width, most / height, 3);
    const sizes = { wide: width * scale, high: height * scale, side: Math.min(width, height) * scale };
    for (const [name, size] of Object.entries(sizes)) {
      byId("frame").style.setProperty(`--${name}`, `${size}px`);
    }
  }

  // -- What the visitor does

  // As many captions as the beam is wide, at most.
  function counts() {
    const beam = Number(byId("beam").value);
    const before = Number(byId("count").value) || 3;
    const possible = [1, 3, 5, 10].filter((n) => n <= beam);
    byId("count").replaceChildren(...possible.map((n) =>
      element("option", { value: n }, String(n))));
    byId("count").value = String(Math.max(...possible.filter((n) => n <= before)));
    byId("count-label").hidden = beam === 1;
  }

  for (const [button, input] of [["choose", "file"], ["photograph", "camera"]]) {
    byId(button).addEventListener("click", () => byId(input).click());
    byId(input).addEventListener("change", (event) => {
      if (event.target.files.length) take(event.target.files);
      event.target.value = ""; // the same file may be chosen again
    });
  }
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("beam").addEventListener("change", () => {
    counts();
    caption();
  });
  byId("count").addEventListener("change", caption);
  byId("show-map").addEventListener("change", showMap);
  byId("method").addEventListener("change", showMap);
  byId("shown").addEventListener("load", () => {
    const { naturalWidth: width, naturalHeight: height } = byId("shown");
    byId("name").textContent = `${state.file.name || "picture"}, ${width} × ${height}`
      + `${width === height ? "" : ". The network reads the square in the middle."}`;
    place();
  });
  byId("shown").addEventListener("error", () => {
    byId("shown").hidden = true;
    byId("unshown").hidden = false;
  });
  new ResizeObserver(place).observe(byId("frame"));

  let within = 0; // dragenter and dragleave also come from elements inside
  const dragging = (by) => {
    within = by ? Math.max(0, within + by) : 0;
    document.body.classList.toggle("dragging", within > 0);
  };
  document.addEventListener("dragenter", () => dragging(1));
  document.addEventListener("dragleave", () => dragging(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    dragging(0);
    take(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    const { files } = event.clipboardData;
    event.preventDefault();
    if (files.length) take(files);
    else complain("There is no picture in the clipboard.");
  });

  byId("example").textContent = `curl -F file=@photo.jpg -F beam=3 -F alternatives=5 ${location.origin}/caption`;
  counts();
  ask("about").then((about) => {
    state.about = about;
    byId("about").textContent = `${about.run}: ${about.cell.toUpperCase()}, `
      + `${about.words.toLocaleString("en")} words, pictures read by ${about.network}.`;
    for (const method of about.maps.methods || []) {
      byId("method").append(element("option", { value: method.name }, method.title));
    }
    if (state.answer) choose(null);
  }).catch((error) => complain(error.message));
})();
