// Segments a picture with transformers.js alone: its SamModel and SamProcessor, on ONNX Runtime.
//
//   node segment.mjs FOLDER PICTURE PROMPTS OUTPUT
//
// FOLDER is what export_onnx wrote, PROMPTS a JSON list of {points, labels} in pixels of the
// picture. OUTPUT.bin gets the masks of all prompts, one byte a pixel; OUTPUT.pixels the model's
// input, float32; OUTPUT.json the rest.
import { writeFileSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";
import { AutoProcessor, RawImage, SamModel, env } from "@huggingface/transformers";

const [folder, picture, prompts, output] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = dirname(resolve(folder));
const options = { dtype: "fp32" };
const model = await SamModel.from_pretrained(basename(folder), options);
const processor = await AutoProcessor.from_pretrained(basename(folder));
const image = await RawImage.read(picture);

let embeddings = null;
let pixels = null;
const results = [];
const masks = [];
for (const { points, labels } of JSON.parse(prompts)) {
  const inputs = await processor(image, { input_points: points, input_labels: labels });
  pixels ??= inputs.pixel_values;
  embeddings ??= await model.get_image_embeddings(inputs);
  const { pred_masks, iou_scores } = await model({ ...inputs, ...embeddings });
  const sizes = [inputs.original_sizes, inputs.reshaped_input_sizes];
  const [mask] = await processor.post_process_masks(pred_masks, ...sizes);
  masks.push(mask.data);
  results.push({ dims: mask.dims, scores: Array.from(iou_scores.data) });
}
writeFileSync(`${output}.bin`, Buffer.concat(masks.map((data) => Buffer.from(data))));
writeFileSync(`${output}.pixels`, Buffer.from(pixels.data.buffer));
const names = [model.constructor.name, processor.constructor.name];
writeFileSync(`${output}.json`, JSON.stringify({ names, results, input: pixels.dims }));
