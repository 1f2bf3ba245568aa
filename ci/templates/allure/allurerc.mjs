// Allure 3: `npx allure generate --config allurerc.mjs allure-results`. Allure 2 finds categories.json by itself, Allure 3
// takes categories from here: the same file. history.jsonl, kept between runs, says since when a host is blocked.
import { existsSync, readFileSync } from "node:fs";

const found = `${process.env.ALLURE_RESULTS ?? "allure-results"}/categories.json`;

export default {
  name: "GPU discovery",
  output: "allure-report",
  historyPath: "history.jsonl",
  categories: existsSync(found) ? JSON.parse(readFileSync(found, "utf8")) : [],
};
