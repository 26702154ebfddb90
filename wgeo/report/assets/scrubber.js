// Class means and samples that move from layer to layer, or from epoch to epoch, with a slider.
// Needs no library and sends no request.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg", WIDTH = 640, HEIGHT = 420, SECONDS = 6;
  const LEFT = 62, RIGHT = 622, TOP = 14, BOTTOM = 368, MARGIN = 14;  // the frame of the axes

  function svg(tag, attributes, parent) {
    const node = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (parent) parent.append(node);
    return node;
  }

  function html(tag, properties, parent) {
    const node = Object.assign(document.createElement(tag), properties);
    parent.append(node);
    return node;
  }

  // The same scale on both axes keeps straight lines straight.
  function projection(scene) {
    const all = [...scene.means, ...(scene.points || [])].flat();
    const xs = all.map(p => p[0]), ys = all.map(p => p[1]);
    const low = v => v.reduce((a, b) => Math.min(a, b)), high = v => v.reduce((a, b) => Math.max(a, b));
    const [x0, x1, y0, y1] = [low(xs), high(xs), low(ys), high(ys)];
    const scale = Math.min(
      (RIGHT - LEFT - 2 * MARGIN) / (x1 - x0 || 1), (BOTTOM - TOP - 2 * MARGIN) / (y1 - y0 || 1));
    const middle = [(x0 + x1) / 2, (y0 + y1) / 2];
    const place = ([x, y]) => [
      (LEFT + RIGHT) / 2 + scale * (x - middle[0]),
      (TOP + BOTTOM) / 2 - scale * (y - middle[1]),
    ];
    return { place, scale, middle };
  }

  // A frame with ticks at round numbers and the axes' labels.
  function axes(scene, { place, scale, middle }, stage) {
    svg("rect", {
      x: LEFT, y: TOP, width: RIGHT - LEFT, height: BOTTOM - TOP, fill: "none", stroke: "#999",
    }, stage);
    const step = round_step((BOTTOM - TOP) / scale / 4);
    const text = (words, attributes) => {
      svg("text", { fill: "#444", "font-size": 12, "text-anchor": "middle", ...attributes }, stage)
        .textContent = words;
    };
    const tick = k => String(Number((k * step).toPrecision(6))).replace("-", "\u2212");
    const ticks = (center, half) => {
      const multiples = [];
      for (let k = Math.ceil((center - half) / step); k * step <= center + half; k++) multiples.push(k);
      return multiples;
    };
    for (const k of ticks(middle[0], (RIGHT - LEFT) / 2 / scale)) {
      const x = place([k * step, 0])[0];
      svg("line", { x1: x, x2: x, y1: BOTTOM, y2: BOTTOM + 4, stroke: "#999" }, stage);
      text(tick(k), { x, y: BOTTOM + 17 });
    }
    for (const k of ticks(middle[1], (BOTTOM - TOP) / 2 / scale)) {
      const y = place([0, k * step])[1];
      svg("line", { x1: LEFT - 4, x2: LEFT, y1: y, y2: y, stroke: "#999" }, stage);
      text(tick(k), { x: LEFT - 7, y: y + 4, "text-anchor": "end" });
    }
    const across = (LEFT + RIGHT) / 2, up = (TOP + BOTTOM) / 2;
    text(scene.axes[0], { x: across, y: HEIGHT - 12, class: "axis" });
    text(scene.axes[1], { x: 14, y: up, transform: `rotate(-90 14 ${up})`, class: "axis" });
  }

  // 1, 2 or 5 times a power of ten.
  function round_step(size) {
    const power = 10 ** Math.floor(Math.log10(size || 1));
    return power * ([1, 2, 5].find(factor => factor * power >= size) || 10);
  }

  function start(root) {
    const data = JSON.parse(root.querySelector("script").textContent);
    const controls = html("div", { className: "controls" }, root);
    const choice = html("select", { ariaLabel: "Segment" }, controls);
    choice.hidden = data.segments.length < 2;
    data.segments.forEach((s, i) => html("option", { value: i, textContent: s.name }, choice));
    const play = html("button", { type: "button", textContent: "Play" }, controls);
    const slider = html("input", { type: "range", min: 0, step: "any", value: 0 }, controls);
    slider.ariaLabel = data.step;
    const position = html("output", {}, controls);
    const metrics = html("p", { className: "metrics" }, root);
    const stage = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: 0 });
    root.append(stage);
    const legend = html("ul", {}, root);
    root.append(root.querySelector(".caption"));
    const color = k => data.colors[k % data.colors.length];
    let scene, moving, last, playing = false, before;

    function set_scene(index) {
      scene = data.segments[index];
      last = scene.means.length - 1;
      slider.max = last;
      slider.value = 0;
      stage.replaceChildren();
      stage.setAttribute("aria-label", `Class means from ${data.step} to ${data.step}, ${scene.name}`);
      const shown = projection(scene), place = shown.place;
      axes(scene, shown, stage);
      const follow = (paths, radius, style) => paths.map((path, i) => {
        const node = svg("circle", { r: radius, ...style(i) }, stage);
        return { node, path };
      });
      const through = (layers, i) => layers.map(layer => place(layer[i]));
      const means = scene.classes.map((_, k) => through(scene.means, k));
      means.forEach((path, k) => svg("polyline", {
        points: path.map(p => p.join()).join(" "), fill: "none", stroke: color(k),
        "stroke-width": 1.2, opacity: 0.35,
      }, stage));
      const samples = (scene.labels || []).map((_, i) => through(scene.points, i));
      moving = [
        ...follow(samples, 2, i => ({ fill: color(scene.labels[i]), opacity: 0.5 })),
        ...follow(means, 6, k => ({ fill: color(k), stroke: "#fff", class: "mean" })),
      ];
      legend.replaceChildren();
      if (scene.classes.length <= 40) scene.classes.forEach((name, k) => {
        const item = html("li", { textContent: name }, legend);
        const dot = html("span", {}, item);
        dot.style.background = color(k);
        item.prepend(dot);
      });
      draw();
    }

    function draw() {
      const at = Number(slider.value), layer = Math.min(Math.floor(at), last - 1), t = at - layer;
      for (const { node, path } of moving) {
        const [a, b] = [path[Math.max(layer, 0)], path[Math.min(layer + 1, last)]];
        node.setAttribute("cx", a[0] + t * (b[0] - a[0]));
        node.setAttribute("cy", a[1] + t * (b[1] - a[1]));
      }
      const name = i => scene.layers[i] || `${data.step} ${i}`;
      const nearest = Math.round(at);
      const on = Math.abs(at - nearest) < 0.02;
      position.textContent = on ? name(nearest) : `${name(layer)} → ${name(layer + 1)}`;
      slider.setAttribute("aria-valuetext", position.textContent);
      metrics.textContent = Object.entries(scene.metrics)
        .filter(([, values]) => values.some(value => value !== "\u2013"))
        .map(([metric, values]) => `${metric}: ${values[nearest]}`).join(" \u00b7 ");
    }

    function step(now) {
      if (!playing) return;
      const moved = before === undefined ? 0 : (now - before) / 1000 * last / SECONDS;
      before = now;
      slider.value = Math.min(last, Number(slider.value) + moved);
      draw();
      if (Number(slider.value) >= last) stop(); else requestAnimationFrame(step);
    }

    function stop() {
      playing = false;
      play.textContent = "Play";
    }

    choice.addEventListener("change", () => { stop(); set_scene(Number(choice.value)); });
    slider.addEventListener("input", () => { stop(); draw(); });
    root.addEventListener("keydown", event => {  // arrows step from layer to layer
      if (![slider, stage].includes(event.target)) return;
      const way = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (!way) return;
      event.preventDefault();
      stop();
      slider.value = Math.round(Number(slider.value)) + way;
      draw();
    });
    play.addEventListener("click", () => {
      if (playing) return stop();
      playing = true;
      before = undefined;
      play.textContent = "Pause";
      if (Number(slider.value) >= last) slider.value = 0;
      requestAnimationFrame(step);
    });
    set_scene(0);
  }

  document.querySelectorAll(".wgeo-scrubber").forEach(start);
})();
