(* Reads operations from standard input, one a line, does them on the model that was extracted from Coq, and answers each with
   its result. "show" answers with the state, line by line, and a "." at the end. Words are those of the model; numbers are decimal, below
   2^62. For tests/proved_model.rs.

     machine BITS GICV-FIRST GICV-PAGES ram FIRST PAGES ... window FIRST PAGES ...     a machine that was switched on
     p OP ARGUMENTS      an operation of Pages.v; AssignRun, LendRun and TakeBackRun are ranges of it
     l CALL ARGUMENTS    a call of Lifecycle.v
     show p | show l     the state: as far as Pages.v, or as Lifecycle.v says it *)
open Model

let rec positive n = if n = 1 then XH else if n land 1 = 1 then XI (positive (n lsr 1)) else XO (positive (n lsr 1))
let nat n = if n = 0 then N0 else Npos (positive n)
let rec of_positive = function XH -> 1 | XO p -> 2 * of_positive p | XI p -> 2 * of_positive p + 1
let int = function N0 -> 0 | Npos p -> of_positive p
let rec unary n = if n = 0 then O else S (unary (n - 1))
let signed = function Z0 -> 0 | Zpos p -> of_positive p | Zneg p -> -of_positive p

let denied = function
  | NotDescribed -> "NotDescribed" | PageZero -> "PageZero" | NotOwner -> "NotOwner" | InUse -> "InUse"
  | Occupied -> "Occupied" | NoSuchVm -> "NoSuchVm" | WrongKind -> "WrongKind" | Misaligned -> "Misaligned"
  | OutOfRange -> "OutOfRange" | Busy -> "Busy"

let call_error = function
  | InvalidParameter -> "InvalidParameter" | NoSuchObject -> "NoSuchObject" | WrongState -> "WrongState"
  | E_NotOwner -> "NotOwner" | E_InUse -> "InUse" | E_Occupied -> "Occupied" | NoSpace -> "NoSpace" | E_Busy -> "Busy"
  | NotAuthentic -> "NotAuthentic"

let answer = function
  | Nothing -> "done"
  | Number n -> Printf.sprintf "number %d" (int n)
  | Starts Resume -> "resume"
  | Starts (Psci (pc, x0)) -> Printf.sprintf "psci-start %d %d" (int pc) (int x0)
  | Starts (FromManifest (pc, x0)) -> Printf.sprintf "manifest %d %d" (int pc) (int x0)
  | Starts Mailbox -> "mailbox"
  | PsciResult n -> Printf.sprintf "psci %d" (signed n)

let sorted f map = List.sort compare (List.map (fun (k, a) -> (int k, f a)) (entries map))

let show whole s =
  let m = s.memory in
  List.iter (fun (p, st) -> Printf.printf "page %d %s\n" p st)
    (sorted (function
       | Host -> "host" | Core -> "core"
       | Lent n -> Printf.sprintf "lent %d" (int n)
       | Private (v, g) -> Printf.sprintf "private %d %d" (int v) (int g)
       | Shared (v, g, n) -> Printf.sprintf "shared %d %d %d" (int v) (int g) (int n)) m.pages);
  List.iter (fun (v, vm) ->
    let pages = List.sort compare (List.map int vm.given) in
    Printf.printf "vm %d %s %d%s given%s\n" v (match vm.kind with Protected -> "protected" | Ordinary -> "ordinary")
      (int vm.size) (if whole then "" else if vm.cut then " cut" else " whole")
      (String.concat "" (List.map (Printf.sprintf " %d") pages));
    List.iter (fun (g, l) -> match l with
      | Ram p -> Printf.printf "leaf %d %d ram %d\n" v g (int p)
      | Window p -> if whole then Printf.printf "leaf %d %d window\n" v g else Printf.printf "leaf %d %d window %d\n" v g (int p))
      (sorted Fun.id vm.table)) (sorted Fun.id m.vms);
  if whole then
    List.iter (fun (v, l) ->
      Printf.printf "life %d %s entry %d %d cntvoff %d images%s\n" v
        (match l.vm_state with Ready -> "Ready" | Verified -> "Verified" | PowerOff -> "PowerOff")
        (int (fst l.entry)) (int (snd l.entry)) (int l.cntvoff)
        (String.concat "" (List.map (fun i -> Printf.sprintf " %d:%d:%d" (int i.first) (int i.bytes) (int i.loaded)) l.images));
      List.iter (fun (c, x) ->
        Printf.printf "vcpu %d %d %d %s %s\n" v c (int x.mailbox) (if x.active then "active" else "idle")
          (match x.power0 with Never -> "never" | On -> "on" | Off -> "off"
           | Pending (pc, x0) -> Printf.sprintf "pending %d %d" (int pc) (int x0)))
        (sorted Fun.id l.vcpus)) (sorted Fun.id s.lives0)
  else begin
    List.iter (fun (p, n) -> Printf.printf "mailbox %d %d\n" p n) (sorted int m.mailboxes);
    List.iter (fun (p, n) -> Printf.printf "content %d %d\n" p n) (sorted int m.contents);
    let rec runs = function
      | [] -> ()
      | p :: rest ->
        let rec last q = function r :: more when r = q + 1 -> last r more | more -> (q, more) in
        let (q, more) = last p rest in
        Printf.printf "host %d %d\n" p q; runs more in
    runs (List.map fst (sorted Fun.id m.host))
  end;
  print_endline "."

let fail line = prerr_endline ("model: what is this: " ^ line); exit 2

let page_op line words =
  let n = List.map (fun w -> nat (int_of_string w)) (List.tl words) in
  match List.hd words, n with
  | "MapPageHost", [p] -> MapPageHost p
  | "ForgetPageHost", [p] -> ForgetPageHost p
  | "HostStore", [p; x] -> HostStore (p, x)
  | "AssignPageToCore", [p] -> AssignPageToCore p
  | "ReturnPageToHost", [p] -> ReturnPageToHost p
  | "RegisterVmTable", [v; k; bits; root] -> RegisterVmTable (v, (if k = N0 then Ordinary else Protected), bits, root)
  | "DonatePoolPage", [v; p] -> DonatePoolPage (v, p)
  | "Assign", [v; g; p; zero] -> Assign (v, g, p, zero <> N0)
  | "GrantVmPage", [v; g] -> GrantVmPage (v, g)
  | "RevokeVmPage", [v; g] -> RevokeVmPage (v, g)
  | "HoldMailbox", [p] -> HoldMailbox p
  | "DropMailbox", [p] -> DropMailbox p
  | "MapVmIo", [v; g; p] -> MapVmIo (v, g, p)
  | "CutVm", [v] -> CutVm v
  | "ClearVmPage", [v; g] -> ClearVmPage (v, g)
  | "ClearVmRange", [v] -> ClearVmRange v
  | "FreeVmTable", [v] -> FreeVmTable v
  | "VmStore", [v; g; x] -> VmStore (v, g, x)
  | _ -> fail line

let call line words =
  let n = List.map (fun w -> nat (int_of_string w)) (List.tl words) in
  match List.hd words, n with
  | "RegisterVm", [k; bits; root] -> RegisterVm (k <> N0, bits, root)
  | "RegisterVcpu", [v; c; p] -> RegisterVcpu (v, c, p)
  | "DonatePool", [v; p; k] -> DonatePool (v, p, k)
  | "SetBootInfo", [v; g; size] -> SetBootInfo (v, g, size)
  | "RemapImagePage", [v; i; p] -> RemapImagePage (v, i, p)
  | "VerifyVm", [v] -> VerifyVm (v, None)
  | "VerifyVm", [v; good; pc; x0] -> VerifyVm (v, Some { authentic = (good <> N0); manifest_entry = (pc, x0) })
  | "MapMemory", [v; g; p; k] -> MapMemory (v, g, p, k)
  | "UnmapMemory", [v; g; k] -> UnmapMemory (v, g, k)
  | "MapIo", [v; g; p; k] -> MapIo (v, g, p, k)
  | "SetCntvoff", [v; x] -> SetCntvoff (v, x)
  | "Activate", [v; c] -> Activate (v, c)
  | "PowerOffVm", [v] -> PowerOffVm v
  | "ReclaimVm", [v] -> ReclaimVm v
  | "DestroyVm", [v] -> DestroyVm v
  | "Started", [v; c] -> Started (v, c)
  | "Leave", [v; c] -> Leave (v, c)
  | "CpuOn", [v; c; pc; x0] -> CpuOn (v, c, pc, x0)
  | "CpuOff", [v; c] -> CpuOff (v, c)
  | "AffinityInfo", [v; c] -> AffinityInfo (v, c)
  | _ -> fail line

let add a b = nat (int a + int b)

let () =
  let s = ref (boot_lives [] [] N0 (N0, N0)) in
  let memory m = s := with_memory !s m in
  let range n act =
    match until_refused (unary n) N0 act !s.memory with
    | Done (m, k) -> memory m; Printf.sprintf "number %d" (int k)
    | Refused why -> "refused " ^ denied why in
  try
    while true do
      let line = input_line stdin in
      match String.split_on_char ' ' line with
      | "machine" :: bits :: first :: count :: regions ->
        let rec banks ram windows = function
          | "ram" :: p :: n :: rest -> banks ((nat (int_of_string p), nat (int_of_string n)) :: ram) windows rest
          | "window" :: p :: n :: rest -> banks ram ((nat (int_of_string p), nat (int_of_string n)) :: windows) rest
          | [] -> boot_lives ram windows (nat (int_of_string bits)) (nat (int_of_string first), nat (int_of_string count))
          | _ -> fail line in
        s := banks [] [] regions;
        print_endline "done"
      | ["show"; "p"] -> show false !s
      | ["show"; "l"] -> show true !s
      | "p" :: (("AssignRun" | "LendRun" | "TakeBackRun") as what) :: arguments ->
        let n = List.map int_of_string arguments in
        print_endline (match what, n with
          | "AssignRun", [v; g; p; k] ->
            range (int (run_of (nat g) (nat p) (nat k))) (fun i m -> assign m (nat v) (add (nat g) i) (add (nat p) i) true)
          | "LendRun", [v; g; p; k] ->
            range (int (run_of (nat g) (nat p) (nat k))) (fun i m -> lend m (nat v) (add (nat g) i) (add (nat p) i))
          | "TakeBackRun", [v; g; k] -> range (min k 512) (fun i m -> take_back m (nat v) (add (nat g) i))
          | _ -> fail line)
      | "p" :: words ->
        print_endline (match perform !s.memory (page_op line words) with
          | Done m -> memory m; "done"
          | Refused why -> "refused " ^ denied why)
      | "l" :: words ->
        let (after, result) = step !s (call line words) in
        s := after;
        print_endline (match result with Done a -> answer a | Refused why -> "refused " ^ call_error why)
      | _ -> fail line
    done
  with End_of_file -> ()
