// Class means and samples moving from layer to layer, or from epoch to epoch: one slider, no
// library, no request.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg", WIDTH = 640, HEIGHT = 400, MARGIN = 18, SECONDS = 6;

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
    const scale = Math.min((WIDTH - 2 * MARGIN) / (x1 - x0 || 1), (HEIGHT - 2 * MARGIN) / (y1 - y0 || 1));
    return ([x, y]) => [
      WIDTH / 2 + scale * (x - (x0 + x1) / 2),
      HEIGHT / 2 - scale * (y - (y0 + y1) / 2),
    ];
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
    const stage = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    root.append(stage);
    const legend = html("ul", {}, root);
    const colour = k => data.colours[k % data.colours.length];
    let scene, moving, last, playing = false, before;

    function set_scene(index) {
      scene = data.segments[index];
      last = scene.means.length - 1;
      slider.max = last;
      slider.value = last;  // classes are furthest apart at the end
      stage.replaceChildren();
      stage.setAttribute("aria-label", `Class means from ${data.step} to ${data.step}, ${scene.name}`);
      const place = projection(scene);
      const follow = (paths, radius, style) => paths.map((path, i) => {
        const node = svg("circle", { r: radius, ...style(i) }, stage);
        return { node, path };
      });
      const through = (layers, i) => layers.map(layer => place(layer[i]));
      const means = scene.classes.map((_, k) => through(scene.means, k));
      means.forEach((path, k) => svg("polyline", {
        points: path.map(p => p.join()).join(" "), fill: "none", stroke: colour(k),
        "stroke-width": 1.2, opacity: 0.35,
      }, stage));
      const samples = (scene.labels || []).map((_, i) => through(scene.points, i));
      moving = [
        ...follow(samples, 2, i => ({ fill: colour(scene.labels[i]), opacity: 0.5 })),
        ...follow(means, 6, k => ({ fill: colour(k), stroke: "#fff", class: "mean" })),
      ];
      legend.replaceChildren();
      if (scene.classes.length <= 40) scene.classes.forEach((name, k) => {
        const item = html("li", { textContent: name }, legend);
        const dot = html("span", {}, item);
        dot.style.background = colour(k);
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
    slider.addEventListener("keydown", event => {  // arrows step from layer to layer
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
    choice.value = data.segments.length - 1;  // in which the classes separate
    set_scene(data.segments.length - 1);
  }

  document.querySelectorAll(".wgeo-scrubber").forEach(start);
})();
