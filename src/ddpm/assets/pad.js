// The pad: a picture of the model's size that a visitor opens, draws or marks. Also the helpers that page.js shares.
window.ddpmPad = (() => {
  const pads = {}, marked = {}; // by name; a damage may be chosen before its pad is made
  let samples = []; // the model's own, which pads without examples offer
  const LOST = "#D55E00";
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  }

  // A text as HTML.
  const text = (words) => make("span", {}, words).innerHTML;

  function loaded(source) {
    return new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => resolve(image);
      image.onerror = reject;
      image.src = source;
    });
  }

  // A file as a `data:` address.
  function address(file) {
    return new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.readAsDataURL(file);
    });
  }

  function blank(width, height, colour) {
    const canvas = make("canvas", { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    if (colour) {
      context.fillStyle = colour;
      context.fillRect(0, 0, width, height);
    }
    return [canvas, context];
  }

  // Mean grey level of the border, 0 to 255.
  function border(context, width, height) {
    const { data } = context.getImageData(0, 0, width, height);
    let sum = 0, count = 0;
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++)
        if (x === 0 || y === 0 || x === width - 1 || y === height - 1) {
          const place = 4 * (y * width + x);
          sum += (data[place] + data[place + 1] + data[place + 2]) / 3;
          count++;
        }
    return sum / count;
  }

  // A picture of the model's size that can be chosen, drawn and inverted, and a mask over it if `marks` is true.
  // options: name, label, width, height, grey, marks, examples (pictures), limit (bytes of a file)
  // A picture that is offered has an address `image` and perhaps a `label`, its class.
  function pad(element, props, trigger, server, options) {
    const { width, height, marks } = options;
    const zoom = Math.max(1, Math.floor(336 / Math.max(width, height)));
    const [picture, ink] = blank(width, height, "#000");
    const [canvas, view] = blank(width * zoom, height * zoom);
    const lost = new Uint8Array(width * height);
    const touch = matchMedia("(pointer: coarse)").matches;
    let tool = touch ? "scroll" : marks ? "mark" : "draw"; // one is always chosen; a finger scrolls until one takes a brush
    let marking = marks, background = 0, empty = true, stroke = null, cursor = null, stamp = 0, arriving = null, offered = [], label = "";

    const note = make("p", { class: "pad-note", role: "status" });
    const chooser = make("input", { type: "file", accept: "image/*", hidden: true, "aria-label": `File for ${options.label}` });
    const invert = make("input", { type: "checkbox" });
    const examples = make("div", { class: "pad-examples", role: "group", "aria-label": "Examples" });
    const names = { ...(touch && { scroll: "Scroll" }), draw: "Draw", ...(marks && { mark: "Mark" }), erase: marks ? "Unmark" : "Erase" };
    const tools = Object.entries(names).map(([name, text]) =>
      make("button", { type: "button", class: "tool", "data-tool": name, onclick: () => pickUp(name) }, text));
    Object.assign(canvas, { tabIndex: 0 });
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", `${options.label}, ${width} by ${height} pixels. ` +
      "Arrow keys move the brush, space paints, Shift with an arrow paints a line.");
    const colour = options.grey ? null : make("input", { type: "color", value: "#ffffff", "aria-label": "Colour" });
    element.replaceChildren(
      make("div", { class: "pad-stage" }, canvas, ...(touch ? [make("span", { class: "pad-tap", "aria-hidden": true }, "Tap, then paint")] : [])),
      make("div", { class: "pad-tools" },
        make("div", { class: "brushes", role: "group", "aria-label": "Brushes" }, ...tools, ...(colour ? [colour] : [])),
        make("div", {}, make("button", { type: "button", class: "tool", onclick: () => chooser.click() }, "Open a file"), chooser,
          make("button", { type: "button", class: "tool", onclick: clear }, "Clear"),
          make("label", { class: "tool" }, invert, "Invert"))),
      examples, note);

    function choose(name) {
      tool = name;
      tools.forEach((button) => button.setAttribute("aria-pressed", button.dataset.tool === name));
      canvas.style.touchAction = name === "scroll" ? "auto" : "none";
      element.classList.toggle("scrolls", name === "scroll");
    }

    // Say what a finger does now. While it scrolls, the words on the picture say how to paint.
    const hint = () => (touch && tool !== "scroll" ? "A swipe paints. Choose Scroll to move the page." : "");

    function pickUp(name) {
      choose(name);
      note.textContent = hint();
    }

    function render() {
      view.imageSmoothingEnabled = false;
      view.drawImage(picture, 0, 0, canvas.width, canvas.height);
      if (stroke && stroke.ink) view.drawImage(stroke.canvas, 0, 0);
      view.globalAlpha = 0.8;
      view.fillStyle = LOST;
      lost.forEach((is, place) => is && marking && view.fillRect((place % width) * zoom, Math.floor(place / width) * zoom, zoom, zoom));
      view.globalAlpha = 1;
      if (cursor && document.activeElement === canvas) {
        view.lineWidth = 2;
        for (const [line, colour] of [[0, "#fff"], [2, "#000"]]) {
          view.strokeStyle = colour;
          view.strokeRect(cursor[0] * zoom - line / 2, cursor[1] * zoom - line / 2, zoom + line, zoom + line);
        }
      }
    }

    function send() {
      const value = { image: empty ? "" : picture.toDataURL(), mask: "", label };
      if (marking && lost.some(Boolean)) {
        const [mask, context] = blank(width, height, "#000");
        context.fillStyle = "#fff";
        lost.forEach((is, place) => is && context.fillRect(place % width, Math.floor(place / width), 1, 1));
        value.mask = mask.toDataURL();
      }
      props.value = JSON.stringify(value);
      render();
    }

    // What was drawn of the picture before is not of this one.
    function changed() {
      send();
      window.ddpmResult.stale(options.run);
    }

    // Every new picture takes a number, so that one that is slow to arrive does not replace a later one.
    async function show(source, { guess = false, say = "", named = "" } = {}) {
      const number = ++stamp;
      const image = await loaded(source);
      if (number !== stamp) return;
      ink.imageSmoothingEnabled = true;
      ink.drawImage(image, 0, 0, width, height);
      label = named;
      empty = false;
      invert.checked = false;
      note.textContent = say || hint();
      const edge = border(ink, width, height);
      if (guess && options.grey && Math.abs(edge - background) > 128) {
        invert.checked = true;
        flip();
        note.textContent = `Inverted: this model draws ${background < 128 ? "light on dark" : "dark on light"}. Untick Invert to keep it.`;
      }
      changed();
      trigger("change");
    }

    function flip() {
      const pixels = ink.getImageData(0, 0, width, height);
      for (let i = 0; i < pixels.data.length; i++) if (i % 4 !== 3) pixels.data[i] = 255 - pixels.data[i];
      ink.putImageData(pixels, 0, 0);
    }

    async function read(file) {
      if (!file) return;
      const number = ++stamp;
      if (file.size > options.limit) return refuse(`The upload cannot be used: it is larger than ${options.limit >> 20} MB.`);
      note.textContent = "Reading …";
      const answer = await server.fit(await address(file)).catch(() => ({ error: "The server does not answer." }));
      if (number !== stamp) return;
      if (answer.error) return refuse(answer.error);
      lost.fill(0);
      if (answer.cells) return pick(answer);
      await show(answer.image, { guess: true, say: answer.note });
    }

    // Offer the images of a grid in place of the examples.
    async function pick({ cells, note: said }) {
      choices(cells.map((image) => ({ image })), "Image");
      await show(cells[0], { say: said });
    }

    function choices(sources, word) {
      examples.replaceChildren(...sources.map((source, index) =>
        make("button", { type: "button", "aria-label": [word, index + 1, source.label && `(${source.label})`].filter(Boolean).join(" "), onclick: () => take(source) },
          make("img", { src: source.image, alt: "" }))));
    }

    function refuse(reason) {
      note.textContent = reason;
    }

    function clear() {
      stamp++;
      ink.fillStyle = background < 128 ? "#000" : "#fff";
      ink.fillRect(0, 0, width, height);
      lost.fill(0);
      label = "";
      empty = true;
      invert.checked = false;
      choices(offered, "Example"); // those of a grid have gone with it
      pickUp("draw"); // there is nothing else to do on an empty pad
      changed();
      trigger("change");
    }

    // Show a picture from the page itself, with its lower half marked if nothing is.
    function take(source) {
      if (marks && !lost.some(Boolean)) lost.fill(1, lost.length >> 1);
      return (arriving = show(source.image, { named: source.label }));
    }

    function shade() {
      return colour ? colour.value : background < 128 ? "#fff" : "#000";
    }

    // Marks are whole pixels; ink is drawn finely and then reduced, so that a line looks as in a photograph.
    function mark(x, y) {
      const radius = Math.max(0.5, Math.max(width, height) / 18);
      for (let v = 0; v < height; v++)
        for (let u = 0; u < width; u++)
          if (Math.hypot(u + 0.5 - x, v + 0.5 - y) <= radius) lost[v * width + u] = tool === "mark" ? 1 : 0;
    }

    function begin(x, y) {
      if (marking && tool !== "draw") stroke = { ink: false, x, y };
      else {
        const [layer, context] = blank(canvas.width, canvas.height);
        context.lineCap = context.lineJoin = "round";
        context.lineWidth = canvas.width / 11;
        context.strokeStyle = tool === "erase" ? (background < 128 ? "#000" : "#fff") : shade();
        stroke = { ink: true, canvas: layer, context, x, y };
      }
      extend(x, y);
    }

    function extend(x, y) {
      if (stroke.ink) {
        const { context } = stroke;
        context.beginPath();
        context.moveTo(stroke.x * zoom, stroke.y * zoom);
        context.lineTo(x * zoom + 0.01, y * zoom);
        context.stroke();
      } else {
        const count = Math.ceil(Math.hypot(x - stroke.x, y - stroke.y)) + 1;
        for (let i = 1; i <= count; i++) mark(stroke.x + ((x - stroke.x) * i) / count, stroke.y + ((y - stroke.y) * i) / count);
      }
      Object.assign(stroke, { x, y });
      render();
    }

    function end() {
      if (!stroke) return;
      if (stroke.ink) {
        ink.imageSmoothingEnabled = true;
        ink.imageSmoothingQuality = "high";
        ink.drawImage(stroke.canvas, 0, 0, width, height);
        empty = false;
        stamp++;
      }
      stroke = null;
      changed();
    }

    function place(event) {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
    }

    canvas.addEventListener("click", (event) => {
      if (tool !== "scroll") return;
      pickUp(marking ? "mark" : "draw");
      begin(...place(event));
      end();
    });
    canvas.addEventListener("pointerdown", (event) => {
      if (tool === "scroll" || event.button) return;
      canvas.setPointerCapture(event.pointerId);
      begin(...place(event));
    });
    canvas.addEventListener("pointermove", (event) => stroke && extend(...place(event)));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, end);
    canvas.addEventListener("focus", () => ((cursor ??= [width >> 1, height >> 1]), render()));
    canvas.addEventListener("blur", render);
    canvas.addEventListener("keydown", (event) => {
      const move = ARROWS[event.key];
      if (!move && event.key !== " ") return;
      event.preventDefault();
      if (tool === "scroll") choose(marking ? "mark" : "draw");
      const from = [...cursor];
      if (move) cursor = [0, 1].map((axis) => Math.min([width, height][axis] - 1, Math.max(0, cursor[axis] + move[axis])));
      if (!move || event.shiftKey) {
        begin(from[0] + 0.5, from[1] + 0.5);
        extend(cursor[0] + 0.5, cursor[1] + 0.5);
        end();
      } else render();
    });
    chooser.addEventListener("change", () => ((arriving = read(chooser.files[0])), (chooser.value = "")));
    invert.addEventListener("change", () => (flip(), (empty = false), (note.textContent = hint()), changed()));
    element.addEventListener("drop", (event) => (arriving = read(event.dataTransfer.files[0])));

    // The first pictures that are offered stay, also if others come while they load.
    async function offer(sources) {
      if (offered.length || !sources.length) return;
      offered = sources.slice(0, 6);
      const first = await loaded(sources[0].image);
      const [, context] = blank(width, height);
      context.drawImage(first, 0, 0, width, height);
      background = border(context, width, height);
      if (!examples.children.length) choices(offered, "Example");
      if (empty && !stamp) await take(sources[options.filled] ?? sources[0]);
    }

    // Whether a part can be marked: some damages ignore the marks.
    function setMarking(is) {
      marking = marks && is;
      tools.forEach((button) => (button.hidden = !marking && button.dataset.tool === "mark"));
      tools.at(-1).textContent = marking ? "Unmark" : "Erase";
      if (!touch || (!marking && tool === "mark")) choose(marking ? "mark" : "draw");
      render();
      window.ddpmResult.stale(options.run);
    }

    choose(tool);
    props.value = "";
    render();
    pads[options.name] = { take, offer, send, setMarking, arriving: () => arriving };
    setMarking(marked[options.name] ?? true);
    arriving = offer(options.examples.length ? options.examples : samples);
  }

  function offer(sources) {
    samples = sources;
    Object.values(pads).forEach((one) => one.offer(samples));
  }

  function marking(name, is) {
    marked[name] = is;
    pads[name]?.setMarking(is);
  }

  // Wait for the pictures that are on their way to a pad, and send all again: when Gradio shows a tab for the first time, it
  // sets its components to what they began with, also a pad that has already taken a picture.
  async function ready() {
    await Promise.allSettled(Object.values(pads).map((one) => one.arriving()));
    Object.values(pads).forEach((one) => one.send());
    await new Promise(requestAnimationFrame);
  }

  return { make, text, loaded, address, ARROWS, pads, pad, offer, marking, ready };
})();
