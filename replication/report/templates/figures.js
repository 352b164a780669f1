// What each figure draws: from its own CSV, which is the one that its link downloads.
function stacked(row, from = 0) {
  const counted = new Set(told.conventions[state.convention]);
  const parts = [];
  for (const [name, group] of Object.entries(told.groups)) {
    const flops = group.parts.filter((part) => counted.has(part)).reduce((sum, part) => sum + (row[part] ?? 0), 0);
    if (flops) parts.push({ from, to: (from += flops), colour: group.colour, name: `${name}: ${count(flops)}` });
  }
  return parts;
}

function componentBars(host, alt, name, bar) {
  const scales = grouped(rowsOf(name), "scale");
  const places = panels(host, scales.size);
  [...scales].forEach(([scale, list], place) => {
    const bars = list.map((row) => ({ ...bar(row), parts: stacked(row) }));
    rows(places[place], { title: scale, alt, x: flopsAxis(), rows: bars });
  });
  const counted = new Set(told.conventions[state.convention]);
  legend(
    host,
    Object.entries(told.groups)
      .filter(([, { parts }]) => parts.some((part) => counted.has(part)))
      .map(([group, { colour }]) => ({ name: group, colour })),
  );
}

function topology(host, alt, series, shade) {
  const places = panels(host, 4, "17rem");
  Object.entries(told.moved).forEach(([what, of], place) => {
    const y = { name: `share of ${of}`, form: percent, min: 0 };
    lines(places[place], {
      title: what,
      alt,
      height: 230,
      x: { name: "step", min: 0 },
      y,
      shades: shade,
      series: series(what),
    });
  });
}

const DRAW = {
  against_dense(host, alt) {
    const shown = rowsOf("against_dense").filter((row) => told.arms[row.arm].head && isShown(row.arm));
    const others = rowsOf("against_dense").filter((row) => !told.arms[row.arm].head);
    const sorted = [...others, ...shown].sort((one, other) => one.difference - other.difference);
    const bars = sorted.map((row) => ({
      name: label(row.arm),
      marks: [{ ...sign(row.arm), x: row.difference, size: 6, said: label(row.arm) }],
      interval: row.low === null ? undefined : [row.low, row.high],
      note: `${signed(row.difference)}, ${times(row)}, n = ${row.n}`,
    }));
    const x = { name: "validation loss − dense, nats per token" };
    rows(panels(host, 1)[0], {
      title: `× in FLOPs: ${counting()}`,
      alt,
      x,
      rows: bars,
      guides: [{ x: 0 }],
      band: [-told.margin, told.margin],
    });
  },
  conventions(host, alt) {
    const scales = grouped(rowsOf("conventions"), "scale");
    const places = panels(host, scales.size);
    const names = Object.keys(told.conventions);
    [...scales].forEach(([scale, list], place) =>
      heat(places[place], {
        title: scale,
        alt,
        columns: names.map((name) => told.words[name]),
        chosen: names.indexOf(state.convention),
        form: (value) => `${value.toFixed(2)}×`,
        low: 1,
        high: 8,
        bold: told.least,
        rows: list.map((row) => ({ name: label(row.arm), values: names.map((name) => row[name]) })),
      }),
    );
  },
  quality_against_cost(host, alt) {
    const arms = grouped(rowsOf("quality_against_cost"));
    const has = (head) => [...arms.keys()].some((arm) => told.arms[arm].head === head);
    const shown = told.frontiers.filter(({ head }) => (!state.head || head === state.head) && has(head));
    const readings = shown.length ? shown : told.frontiers.slice(0, 1);
    const places = panels(host, readings.length);
    readings.forEach(({ head, convention, nodes }, place) => {
      const own = [...arms].filter(([arm]) => ["", head].includes(told.arms[arm].head));
      const through = { name: "frontier of smaller dense models", colour: "var(--faint)", points: nodes };
      lines(places[place], {
        title: `LM head ${head}, FLOPs ${told.words[convention]}`,
        alt,
        height: 360,
        x: { name: `training FLOPs (${told.words[convention]})`, form: count, log: true, pad: 0.08 },
        y: { name: "final validation loss, nats per token" },
        series: [through, ...own.map(([arm, list]) => final(arm, list, convention))],
      });
    });
    legendOf(host, arms.keys());
    legend(host, [{ name: "frontier of smaller dense models", colour: "var(--faint)", dash: "" }]);
  },
  loss_curves(host, alt) {
    const arms = grouped(rowsOf("loss_curves"));
    const places = panels(host, 2);
    const finals = [...arms.values()].flatMap((list) => [list.at(-1).lowest, list.at(-1).highest]);
    const y = { name: "loss, nats per token" };
    const near = { ...y, min: Math.min(...finals) - 0.1, max: Math.max(...finals) + 1 };
    const training = [...grouped(rowsOf("schedules"))].map(([arm, list]) =>
      line(
        arm,
        list.map((row) => [row.step, row.loss]),
        { width: 0.8, opacity: 0.4, dash: undefined, name: `${label(arm)}, training loss` },
      ),
    );
    const curves = (x) =>
      [...arms].map(([arm, list]) =>
        line(
          arm,
          list.map((row) => [row[x], row.mean]),
          {
            band: list.map((row) => [row[x], row.lowest, row.highest]),
            marks: [end(arm, [list.at(-1)[x], list.at(-1).mean])],
          },
        ),
      );
    lines(places[0], {
      title: "At the same text",
      alt,
      height: 360,
      x: { name: "step", min: 0 },
      y,
      shades: shades(),
      series: [...training, ...curves("step")],
    });
    lines(places[1], {
      title: "At the same cost",
      alt,
      height: 360,
      x: flopsAxis(),
      y: near,
      series: curves(state.convention),
    });
    legendOf(host, arms.keys(), shades());
  },
  flops_by_phase(host, alt) {
    componentBars(host, alt, "flops_by_phase", (row) => ({
      name: `${label(row.arm)}, ${row.phase}`,
      note: percent(stacked(row).at(-1).to / row[`dense (${state.convention})`]),
    }));
  },
  flops_by_component(host, alt) {
    componentBars(host, alt, "flops_by_component", (row) => ({
      name: label(row.arm),
      note: `${(row[`dense (${state.convention})`] / stacked(row).at(-1).to).toFixed(2)}×`,
    }));
  },
  flops_by_step(host, alt) {
    const arms = grouped(rowsOf("flops_by_step"));
    const places = panels(host, 2);
    const x = { name: "step", min: 0 };
    const whole = ([arm, list]) =>
      line(
        arm,
        list.map((row) => [row.step, row[state.convention]]),
      );
    const rate = ([arm, list]) =>
      line(
        arm,
        list.map((row, place) => {
          const before = list[place - 1] ?? { step: 0, [state.convention]: 0 };
          return [row.step, (row[state.convention] - before[state.convention]) / (row.step - before.step)];
        }),
        { stepped: true },
      );
    const y = { name: `FLOPs (${counting()})`, form: count, min: 0 };
    lines(places[0], { title: "Training FLOPs of one step", alt, x, y, shades: shades(), series: [...arms].map(rate) });
    lines(places[1], { title: "Training FLOPs so far", alt, x, y, shades: shades(), series: [...arms].map(whole) });
    legendOf(host, arms.keys(), shades());
  },
  schedules(host, alt) {
    const arms = grouped(rowsOf("schedules"));
    const places = panels(host, 3);
    const x = { name: "step", min: 0 };
    const target = ([arm, list]) =>
      line(
        arm,
        list.map((row) => [row.step, row.sparsity_target]),
        { colour: "var(--ink)", width: 1.2, dash: "1 4", name: `${label(arm)}, target` },
      );
    const actual = ([arm, list]) =>
      line(
        arm,
        list.map((row) => [row.step, row.sparsity]),
      );
    const drop = ([arm, list]) =>
      line(
        arm,
        list.map((row) => [row.step, row.drop_fraction]),
      );
    const shade = shades();
    const moving = [...arms].filter(([arm]) => rowsOf("topology_by_arm").some((row) => row.arm === arm));
    lines(places[0], {
      title: "Sparsity of the maskable weights",
      alt,
      x,
      y: { name: "share of zeros", form: percent, min: 0, max: 1 },
      shades: shade,
      series: [...[...arms].map(actual), ...[...arms].map(target)],
    });
    lines(places[1], {
      title: "Drop fraction of an update",
      alt,
      x,
      y: { name: "share of active weights", form: percent, min: 0 },
      shades: shade,
      series: moving.map(drop),
    });
    const bars = [...arms].map(([arm, list]) => {
      const parts = [];
      for (const { attention_pattern: name, step } of list) {
        if (parts.at(-1)?.name === name) parts.at(-1).to = step;
        else parts.push({ name, from: parts.at(-1)?.to ?? 0, to: step, colour: told.patterns[name] });
      }
      return { name: label(arm), parts };
    });
    places[2].style.gridColumn = "1 / -1";
    rows(places[2], { title: "Attention pattern", alt, x: { ...x, pad: 0 }, rows: bars });
    legendOf(host, arms.keys(), shades());
    const used = new Set(bars.flatMap((bar) => bar.parts.map((part) => part.name)));
    legend(
      host,
      [...used].map((name) => ({ name: `attention: ${name}`, colour: told.patterns[name] })),
    );
  },
  attention_patterns(host, alt) {
    const patterns = grouped(rowsOf("attention_patterns"), "pattern");
    const places = panels(host, patterns.size, "11rem");
    [...patterns].forEach(([name, list], place) => {
      const size = Math.max(...list.map((row) => row.last_key)) + 1;
      const kept = list.reduce((sum, row) => sum + row.last_key - row.first_key + 1, 0) / ((size * (size + 1)) / 2);
      const svg = node(places[place], "svg", {
        viewBox: `-0.5 -0.5 ${size + 1} ${size + 1}`,
        role: "img",
        "aria-label": `${name}: ${percent(kept)} of causal pairs. ${alt}`,
      });
      node(svg, "rect", { width: size, height: size, fill: "var(--card)", stroke: "var(--rule)", "stroke-width": 0.5 });
      const path = list.map(
        (row) =>
          `M${row.first_key} ${row.query}h${row.last_key - row.first_key + 1}v1h${row.first_key - row.last_key - 1}z`,
      );
      node(svg, "path", { d: path.join(""), fill: name === "dense" ? "var(--faint)" : told.patterns[name] });
      places[place].append(
        Object.assign(document.createElement("small"), { textContent: `${name}: ${percent(kept)} of causal pairs` }),
      );
    });
  },
  topology_by_arm(host, alt) {
    const arms = grouped(rowsOf("topology_by_arm"));
    const seeds = [...arms].flatMap(([arm, list]) => [...grouped(list, "seed")].map(([seed, own]) => [arm, seed, own]));
    topology(
      host,
      alt,
      (what) =>
        seeds.map(([arm, seed, list]) =>
          line(
            arm,
            list.map((row) => [row.step, row[what]]),
            { width: 1, opacity: 0.8, marks: points(arm, seed, list, what) },
          ),
        ),
      shades(),
    );
    legendOf(host, arms.keys(), shades());
  },
  topology_by_layer(host, alt) {
    const layers = grouped(
      rowsOf("topology_by_layer").filter((row) => row.arm === state.arm),
      "layer",
    );
    const kinds = [...new Set([...layers.keys()].map(kind))];
    const dashes = ["", "7 3", "2 3", "9 3 2 3", "4 2 1 2 1 2", "12 4"];
    const dash = (name) => dashes[kinds.indexOf(name) % dashes.length];
    topology(
      host,
      alt,
      (what) =>
        [...layers].map(([layer, list]) => ({
          name: layer,
          colour: colour(state.arm),
          dash: dash(kind(layer)),
          width: 1.3,
          opacity: 0.85,
          points: list.map((row) => [row.step, row[what]]),
        })),
      shades(state.arm),
    );
    legend(
      host,
      kinds.map((name) => ({ name, colour: colour(state.arm), dash: dash(name) })),
    );
  },
  masks(host, alt) {
    const layers = rowsOf("masks").filter((row) => row.arm === state.arm);
    const places = panels(host, layers.length, "8.5rem");
    if (!layers.length) panels(host, 1)[0].append(`${label(state.arm)} has no masks: all of its weights are active.`);
    layers.forEach((row, place) => {
      const picture = document.createElement("canvas");
      const parts = row.parts ? `: ${row.parts}` : "";
      const said = `${row.layer}, ${row.rows} × ${row.columns}, ${percent(row.density)} active${parts}`;
      if (row.parts) picture.className = "thirds";
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", `${alt}: ${said}`);
      Object.assign(picture, { width: row.tiles_across, height: row.tiles.length / row.tiles_across });
      picture.style.color = colour(state.arm);
      places[place].append(picture, Object.assign(document.createElement("small"), { textContent: said }));
      paint(picture, row.tiles);
    });
  },
};

/** An arm's seeds, their mean, and its interval; hollow where dense was trained for fewer steps. */
function final(arm, list, convention) {
  const mean = list.reduce((sum, row) => sum + row.loss, 0) / list.length;
  const look = { shape: sign(arm).shape, hollow: list[0].fewer_steps === "True" };
  const small = list.map((row) => ({
    ...look,
    x: row[convention],
    y: row.loss,
    size: 2.5,
    opacity: 0.55,
    said: `${label(arm)}, seed ${row.seed}: ${number(row.loss)}`,
  }));
  const [{ [convention]: cost, low, high }] = list;
  const interval = low === null ? [] : [low, high].map((bound) => [cost, bound]);
  const marks = [...small, { ...end(arm, [cost, mean]), ...look, size: 7 }];
  return { ...sign(arm), dash: undefined, width: 1.4, points: interval, marks };
}

/** Marks on a seed's line, an eighth of it apart. */
function points(arm, seed, list, what) {
  const every = Math.max(1, Math.floor(list.length / 8));
  return list
    .filter((_, place) => place % every === 0)
    .map((row) => ({ ...end(arm, [row.step, row[what]]), size: 3, said: `${label(arm)}, seed ${seed}` }));
}

/** A tile's density as how much of the colour there is. */
function paint(picture, tiles) {
  const context = picture.getContext("2d");
  const image = context.createImageData(picture.width, picture.height);
  const [red, green, blue] = getComputedStyle(picture)
    .color.match(/[\d.]+/g)
    .map(Number);
  [...tiles].forEach((letter, place) =>
    image.data.set([red, green, blue, (255 * told.tiles.indexOf(letter)) / (told.tiles.length - 1)], 4 * place),
  );
  context.putImageData(image, 0, 0);
}

/** `attn.c_attn` of `h.0.attn.c_attn`. */
function kind(layer) {
  return layer.replace(/^h\.\d+\./, "");
}
